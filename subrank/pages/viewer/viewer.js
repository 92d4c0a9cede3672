"use strict";
// Reads the run, wires the parts together, and listens to the keys.
(() => {
  const { el, load } = subrank;
  const at = (id) => document.getElementById(id);
  const [stage, list, panel, search, keys] = ["stage", "list", "panel", "search", "keys"].map(at);
  let data = null;
  let shown = null; // {node} or {edge}: what the panel shows
  let ticket = 0; // of the last request: an answer that comes late is dropped
  let listed = null; // promise of the list's rows
  let hits = []; // nodes that the search finds, and which of them was gone to last
  let hit = -1;
  let following = false; // an address, which then is no new one

  // ---- the panel ----

  function show(children) {
    panel.replaceChildren(...children);
    panel.scrollTop = 0;
  }
  const complain = (error) => show([el("p", { class: "problem" }, error.message)]);

  async function openNode(id) {
    const mine = ++ticket;
    shown = { node: id };
    subrank.light.select(shown);
    subrank.light.reveal(id);
    remember(true);
    try {
      const card = await cardOf(id);
      if (mine === ticket) show(subrank.card.feature(id, card, subrank.graph.node(id)));
    } catch (error) {
      if (mine === ticket) complain(error);
    }
  }

  async function cardOf(id) {
    await listed;
    const place = subrank.list.place(id);
    if (place === undefined) return null;
    const { starts } = data.features;
    let chunk = starts.length - 1;
    while (starts[chunk] > place) chunk--;
    return (await load(`features-${String(chunk).padStart(3, "0")}`))[place - starts[chunk]];
  }

  async function openEdge(cause, target) {
    const edge = subrank.graph.edge(cause, target);
    if (!edge) return;
    const mine = ++ticket;
    shown = { edge };
    subrank.light.select(shown);
    remember(true);
    try {
      const [only] = edge.members?.length === 1 ? edge.members : [edge]; // a sum of several has no examples
      const number = only.examples ?? null;
      const chunk = number === null ? null : await load(`edges-${String(number).padStart(3, "0")}`);
      const examples = chunk?.find((e) => e.cause === only.cause && e.target === only.target)?.examples;
      if (mine === ticket) show(subrank.card.edge(edge, examples));
    } catch (error) {
      if (mine === ticket) complain(error);
    }
  }

  function close() {
    ticket++;
    shown = null;
    subrank.light.select(null);
    remember(true);
    show(subrank.card.overview(data));
  }

  // ---- the address ----

  function remember(push) {
    const { hidden, pinned } = subrank.names.view;
    const open = shown?.node ?? (shown?.edge ? `${shown.edge.cause}>${shown.edge.target}` : "");
    const view = data.graph && stage.hidden ? "features" : "";
    subrank.address.write({ open, ...subrank.graph.state(), hidden, pinned, groups: subrank.names.groups, query: search.value.trim(), view }, push && !following);
  }

  function follow() {
    const address = subrank.address.read();
    restore(address);
    if (data.graph && address.hidden) subrank.graph.restore(address);
    if (address.query !== undefined) search.value = address.query;
    if (address.view !== undefined) view(address.view || "circuit");
    following = true;
    const arrow = address.open.indexOf(">"); // a token in the target's name may hold another
    const [cause, target] = arrow < 0 ? ["", ""] : [address.open.slice(0, arrow), address.open.slice(arrow + 1)];
    if (target && subrank.graph.edge(cause, target)) openEdge(cause, target);
    else if (address.open) openNode(address.open);
    else close();
    following = false;
    return find();
  }

  // What an address hides, pins and groups.
  function restore({ hidden, pinned, groups }) {
    if (!hidden) return;
    Object.assign(subrank.names.view, { hidden: new Set(hidden), pinned: new Set(pinned) });
    subrank.names.setGroups(groups);
  }

  // ---- search ----

  async function find() {
    const query = search.value;
    await listed;
    if (query !== search.value) return; // more was typed
    const ids = new Set(subrank.list.search(query));
    const test = subrank.search.matcher(query);
    const entry = (node) => subrank.search.entry(node.id, [node.label || "", ...(node.lines || [])].join(" "), []);
    hits = test ? subrank.graph.all().filter((node) => ids.has(node.id) || test(entry(node), subrank.names.of(node.id))) : [];
    hit = -1;
    subrank.light.mark(test && hits.map((node) => node.id));
    at("hits").textContent = !test || !data.graph ? "" : hits.length + ids.size ? `${subrank.many(hits.length)} of ${subrank.graph.all().length} nodes, ${subrank.many(ids.size)} feature${ids.size === 1 ? "" : "s"}` : `nothing has “${query.trim()}”`;
  }

  // The next node that was found, in the middle; where there is none, the features.
  function next() {
    if (!hits.length) return at("hits").textContent.startsWith("0") && view("features");
    hit = (hit + 1) % hits.length;
    subrank.graph.show(hits[hit].id);
    openNode(hits[hit].id);
  }

  // ---- names ----

  function rename(id) {
    if (shown?.node !== id) return;
    const heading = at("name");
    if (!heading) return;
    const input = el("input", { id: "newname", type: "text", maxlength: "120", value: subrank.names.of(id) || subrank.groups.nameOf(id) || "", placeholder: heading.textContent, "aria-label": `Name of ${id}` });
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const name = subrank.groups.nameOf(id);
      if (name !== null) return openNode(keep && input.value.trim() ? subrank.groups.rename(name, input.value) : id);
      if (keep && !subrank.names.set(id, input.value)) say("This browser keeps no storage: save names.json before leaving.");
      subrank.graph.renamed(id);
      subrank.list.draw();
      openNode(id);
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
    });
    input.addEventListener("blur", () => finish(true));
    heading.replaceChildren(input);
    input.focus();
    input.select();
  }

  function say(text) {
    const note = el("div", { class: "toast", role: "status" }, text);
    document.body.append(note);
    setTimeout(() => note.remove(), 6000);
  }

  function flip(kind, id) {
    subrank.graph.flip(kind, id);
    if (shown?.node === id) openNode(id);
  }

  // ---- views ----

  function view(name) {
    const circuit = name === "circuit" && Boolean(data.graph);
    stage.hidden = !circuit;
    at("hits").hidden = !circuit;
    list.hidden = circuit;
    for (const tab of at("tabs").children) tab.setAttribute("aria-selected", String(tab.dataset.view === (circuit ? "circuit" : "features")));
    if (!circuit) subrank.list.draw();
  }

  function tabs() {
    const tab = (name, text) => el("button", { type: "button", role: "tab", "data-view": name, onclick: () => (view(name), remember()) }, text);
    at("tabs").replaceChildren(...(data.graph ? [tab("circuit", "Circuit")] : []), tab("features", `Features ${subrank.many(data.features.n)}`));
  }

  // ---- keys ----

  const KEYS = [
    ["← → ↑ ↓", "move between nodes, or along the list"],
    ["Enter", "open the node or feature"],
    ["Escape", "close; leave the search"],
    ["/", "search; Enter goes to the next node found"],
    ["+ − 0", "zoom in, out, fit"],
    ["p  h  r", "pin, hide, rename what is open"],
    ["g", "group the pinned nodes"],
    ["t", "tidy: only what leads to the target"],
    ["c  f", "circuit, list of features"],
    ["?", "these keys"],
    ["drag, wheel", "pan or move a node, zoom"],
  ];
  function help() {
    keys.replaceChildren(
      el("h2", {}, "Keys"),
      el("dl", {}, KEYS.map(([key, text]) => [el("dt", {}, key.split("  ").map((k) => el("kbd", {}, k))), el("dd", {}, text)])),
      el("form", { method: "dialog" }, el("button", {}, "Close")),
    );
    keys.showModal();
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const typing = event.target.closest("input[type=search], input[type=text], select, textarea");
    const inList = !list.hidden;
    if (event.key === "Escape") {
      if (typing) search.blur();
      if (typing && search.value) {
        search.value = "";
        find();
        remember();
      } else if (!typing) close();
      return;
    }
    if (typing && !(event.target === search && ["ArrowDown", "ArrowUp", "Enter"].includes(event.key))) return;
    if (!typing && event.target.closest("button, input, summary, a") && (event.key === "Enter" || event.key === " ")) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    const act = event.target === search && event.key === "Enter" && !inList ? next : actions(event.key, inList);
    if (!act) return;
    event.preventDefault();
    act();
  }

  function actions(name, inList) {
    const node = shown?.node ?? subrank.light.focused();
    const common = {
      "/": () => (search.focus(), search.select()),
      "?": help,
      c: () => (view("circuit"), remember()),
      f: () => (view("features"), remember()),
      g: () => data.graph && !inList && subrank.groups.pinned(),
      "+": () => subrank.camera.zoom(1.25),
      "=": () => subrank.camera.zoom(1.25),
      "-": () => subrank.camera.zoom(0.8),
      0: () => subrank.camera.fit(),
      t: () => data.graph && !inList && subrank.graph.tidyUp(),
      r: () => shown?.node && rename(shown.node),
      p: () => node && subrank.graph.drawn(node) && flip("pinned", node),
      h: () => node && subrank.graph.drawn(node) && flip("hidden", node),
    };
    const there = inList
      ? { ArrowDown: () => subrank.list.move(1), ArrowUp: () => subrank.list.move(-1), PageDown: () => subrank.list.move(15), PageUp: () => subrank.list.move(-15), Enter: subrank.list.openCurrent }
      : {
          ...Object.fromEntries(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].map((k) => [k, () => subrank.light.move(k)])),
          Enter: () => subrank.light.focused() && openNode(subrank.light.focused()),
          " ": () => subrank.light.focused() && openNode(subrank.light.focused()),
        };
    return there[name] || common[name];
  }

  // ---- start ----

  async function rows() {
    const rows = [];
    for (let i = 0; i < data.features.lists; i++) rows.push(...(await load(`list-${String(i).padStart(3, "0")}`)));
    subrank.list.fill(rows);
  }

  async function start() {
    data = await load("graph");
    subrank.names.start(data.run, data.names, data.groups);
    const address = subrank.address.read();
    restore(address);
    const handlers = { node: openNode, edge: openEdge, nothing: close, flip, rename, close, say, changed: remember };
    subrank.groups.start(handlers);
    subrank.card.start(handlers, data.joint);
    subrank.list.build(list, handlers);
    tabs();
    if (data.graph) subrank.graph.build(stage, data.graph, handlers);
    view(data.graph ? "circuit" : "features");
    listed = rows();
    let soon = 0;
    search.addEventListener("input", () => {
      find().catch(complain);
      clearTimeout(soon);
      soon = setTimeout(remember, 300);
    });
    at("save").addEventListener("click", subrank.names.save);
    at("help").addEventListener("click", help);
    document.addEventListener("keydown", key);
    window.addEventListener("popstate", follow);
    window.addEventListener("resize", () => subrank.list.draw());
    await follow();
    document.documentElement.dataset.ready = "";
  }
  start().catch(complain);
})();
