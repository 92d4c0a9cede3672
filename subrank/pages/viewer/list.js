"use strict";
// All features, searchable; only the rows in sight are in the page.
subrank.list = (() => {
  const { el, chip, percent, many, visible } = subrank;
  const ROW = 40;
  const SORTS = { order: "in order", dense: "densest first", rare: "rarest first", label: "by label" };
  let host, body, spacer, nothing, count, onopen;
  let rows = []; // [id, label, density, peaks]
  let entries = null; // what is searched, row by row
  let listed = []; // numbers of the rows listed
  let query = "";
  let site = "";
  let sort = "order";
  let current = -1; // place in listed
  const number = new Map(); // id -> number of its row

  function build(stage, handlers) {
    host = stage;
    onopen = handlers.node;
    spacer = el("div", { class: "spacer" });
    nothing = el("p", { class: "note nothing", role: "status", hidden: true });
    body = el("div", { class: "scroll", tabindex: "0", role: "listbox", "aria-label": "Features", onscroll: draw }, spacer, nothing);
    count = el("span", { id: "found" });
    const sites = el("select", { id: "site", "aria-label": "Site", onchange: (event) => ((site = event.target.value), search(query)) });
    const order = el("select", { id: "sort", "aria-label": "Order", onchange: (event) => ((sort = event.target.value), search(query)) }, Object.entries(SORTS).map(([value, text]) => el("option", { value }, text)));
    host.append(el("div", { class: "listbar" }, sites, order, count), body);
    new ResizeObserver(draw).observe(body);
  }

  function fill(all) {
    rows = all;
    entries = null;
    rows.forEach(([id], i) => number.set(id, i));
    const sites = [...new Set(rows.map(([id]) => siteOf(id)))];
    host.querySelector("#site").replaceChildren(el("option", { value: "" }, "all sites"), ...sites.map((name) => el("option", { value: name }, name)));
    search(query);
  }
  const siteOf = (id) => {
    const place = id.slice(0, id.lastIndexOf("_"));
    return /^\d+$/.test(place) ? `resid_post.${place}` : place;
  };

  // Numbers of the rows that a search finds; all without one.
  function matches(text) {
    const test = subrank.search.matcher(text);
    if (!test) return rows.map((_, i) => i);
    entries ||= rows.map(([id, label, , peaks]) => subrank.search.entry(id, label, peaks));
    return rows.map((_, i) => i).filter((i) => test(entries[i], subrank.names.of(rows[i][0])));
  }

  // List what a search finds; returns the ids, those of other sites too.
  function search(text) {
    query = text;
    const matching = matches(text);
    listed = matching.filter((i) => !site || siteOf(rows[i][0]) === site);
    const exact = number.get(text.trim());
    const by = {
      order: null,
      dense: (a, b) => rows[b][2] - rows[a][2],
      rare: (a, b) => rows[a][2] - rows[b][2],
      label: (a, b) => (title(a) === "") - (title(b) === "") || (title(a) < title(b) ? -1 : title(a) > title(b) ? 1 : a - b),
    }[sort];
    if (by) listed.sort(by);
    if (exact !== undefined && listed.includes(exact)) listed = [exact, ...listed.filter((i) => i !== exact)];
    current = text.trim() && listed.length ? 0 : -1;
    nothing.hidden = listed.length > 0;
    nothing.textContent = `No feature has “${text.trim()}” in its id, label, name or tokens.`;
    count.textContent = listed.length === rows.length ? `${many(rows.length)} features` : `${many(listed.length)} of ${many(rows.length)}`;
    spacer.style.height = `${listed.length * ROW}px`;
    body.scrollTop = 0;
    draw();
    return matching.map((i) => rows[i][0]);
  }
  const title = (i) => subrank.names.of(rows[i][0]) || rows[i][1];

  function draw() {
    if (!body || host.hidden) return;
    const from = Math.max(0, Math.floor(body.scrollTop / ROW) - 4);
    const to = Math.min(listed.length, Math.ceil((body.scrollTop + body.clientHeight) / ROW) + 4);
    const lines = [];
    for (let place = from; place < to; place++) lines.push(row(place));
    spacer.replaceChildren(...lines);
  }

  function row(place) {
    const [id, label, density, peaks] = rows[listed[place]];
    const name = subrank.names.of(id);
    const line = el(
      "div",
      { class: `item${place === current ? " current" : ""}${name ? " named" : ""}`, role: "option", "data-id": id, "aria-selected": String(place === current), onclick: () => choose(place) },
      el("span", { class: "id" }, id),
      el("span", { class: "dot", title: subrank.graph.has(id) ? "in the circuit" : null, "data-in": subrank.graph.has(id) ? "" : null }),
      el("span", { class: "name" }, el("bdi", {}, visible(name || label || ""))),
      el("span", { class: "tokens" }, peaks.map((token) => chip(token))),
      el("span", { class: "share" }, percent(density)),
    );
    line.style.transform = `translateY(${place * ROW}px)`;
    return line;
  }

  function choose(place) {
    current = place;
    draw();
    onopen(rows[listed[place]][0]);
  }

  function move(step) {
    if (!listed.length) return;
    current = Math.max(0, Math.min(listed.length - 1, current + step));
    const top = current * ROW;
    if (top < body.scrollTop) body.scrollTop = top;
    if (top + ROW > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW - body.clientHeight;
    draw();
  }
  const openCurrent = () => listed.length && choose(Math.max(0, current));

  const place = (id) => number.get(id); // a feature's number among all cards, undefined without a card
  const label = (id) => rows[number.get(id)]?.[1] || "";
  return { build, fill, search, draw, move, openCurrent, place, label };
})();
