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

  // ---- the panel ----

  function show(children) {
    panel.replaceChildren(...children);
    panel.scrollTop = 0;
  }
  const complain = (error) => show([el("p", { class: "problem" }, error.message)]);

  async function openNode(id) {
    const mine = ++ticket;
    shown = { node: id };
    subrank.graph.select(shown);
    subrank.graph.reveal(id);
    remember(id);
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
    subrank.graph.select(shown);
    remember(`${cause}>${target}`);
    try {
      const chunk = edge.examples === null ? null : await load(`edges-${String(edge.examples).padStart(3, "0")}`);
      const examples = chunk?.find((e) => e.cause === cause && e.target === target)?.examples;
      if (mine === ticket) show(subrank.card.edge(edge, examples));
    } catch (error) {
      if (mine === ticket) complain(error);
    }
  }

  function close() {
    ticket++;
    shown = null;
    subrank.graph.select(null);
    remember("");
    show(subrank.card.overview(data));
  }

  // The address says what is open, so that it can be linked to and gone back to.
  function remember(text) {
    const hash = text ? `#${encodeURIComponent(text)}` : "";
    if (location.hash !== hash) history.pushState(null, "", hash || "#");
  }
  function follow() {
    let text = "";
    try {
      text = decodeURIComponent(location.hash.slice(1));
    } catch {
      // not an address of ours
    }
    const [cause, target] = text.split(">");
    if (target && subrank.graph.edge(cause, target)) openEdge(cause, target);
    else if (text) openNode(text);
    else close();
  }

  // ---- names ----

  function rename(id) {
    if (shown?.node !== id) return;
    const heading = at("name");
    if (!heading) return;
    const input = el("input", { id: "newname", type: "text", maxlength: "120", value: subrank.names.of(id) || "", placeholder: heading.textContent, "aria-label": `Name of ${id}` });
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
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
    list.hidden = circuit;
    for (const tab of at("tabs").children) tab.setAttribute("aria-selected", String(tab.dataset.view === (circuit ? "circuit" : "features")));
    if (!circuit) subrank.list.draw();
  }

  function tabs() {
    const tab = (name, text) => el("button", { type: "button", role: "tab", "data-view": name, onclick: () => view(name) }, text);
    at("tabs").replaceChildren(...(data.graph ? [tab("circuit", "Circuit")] : []), tab("features", `Features ${subrank.many(data.features.n)}`));
  }

  // ---- keys ----

  const KEYS = [
    ["← → ↑ ↓", "move between nodes, or along the list"],
    ["Enter", "open the node or feature"],
    ["Escape", "close; leave the search"],
    ["/", "search"],
    ["+ − 0", "zoom in, out, fit"],
    ["p  h  r", "pin, hide, rename what is open"],
    ["t", "tidy: only what leads to the target"],
    ["c  f", "circuit, list of features"],
    ["?", "these keys"],
    ["drag, wheel", "pan, zoom"],
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
        subrank.list.search("");
      } else if (!typing) close();
      return;
    }
    if (typing && !(event.target === search && ["ArrowDown", "ArrowUp", "Enter"].includes(event.key))) return;
    if (!typing && event.target.closest("button, input, summary, a") && (event.key === "Enter" || event.key === " ")) return;
    if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
    const act = actions(event.key, inList);
    if (!act) return;
    event.preventDefault();
    act();
  }

  function actions(name, inList) {
    const node = shown?.node ?? subrank.graph.focused();
    const common = {
      "/": () => (search.focus(), search.select()),
      "?": help,
      c: () => view("circuit"),
      f: () => view("features"),
      "+": () => subrank.camera.zoom(1.25),
      "=": () => subrank.camera.zoom(1.25),
      "-": () => subrank.camera.zoom(0.8),
      0: () => subrank.camera.fit(),
      t: () => data.graph && !inList && subrank.graph.tidyUp(),
      r: () => shown?.node && rename(shown.node),
      p: () => node && subrank.graph.has(node) && flip("pinned", node),
      h: () => node && subrank.graph.has(node) && flip("hidden", node),
    };
    const there = inList
      ? { ArrowDown: () => subrank.list.move(1), ArrowUp: () => subrank.list.move(-1), PageDown: () => subrank.list.move(15), PageUp: () => subrank.list.move(-15), Enter: subrank.list.openCurrent }
      : {
          ...Object.fromEntries(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].map((k) => [k, () => subrank.graph.move(k)])),
          Enter: () => subrank.graph.focused() && openNode(subrank.graph.focused()),
          " ": () => subrank.graph.focused() && openNode(subrank.graph.focused()),
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
    subrank.names.start(data.run, data.names);
    const handlers = { node: openNode, edge: openEdge, nothing: close, flip, rename, close };
    subrank.card.start(handlers);
    subrank.list.build(list, handlers);
    tabs();
    if (data.graph) subrank.graph.build(stage, data.graph, handlers);
    view(data.graph ? "circuit" : "features");
    listed = rows();
    search.addEventListener("input", () => {
      if (search.value) view("features");
      listed.then(() => subrank.list.search(search.value)).catch(complain);
    });
    at("save").addEventListener("click", subrank.names.save);
    at("help").addEventListener("click", help);
    document.addEventListener("keydown", key);
    window.addEventListener("popstate", follow);
    window.addEventListener("resize", () => subrank.list.draw());
    follow();
    await listed;
    document.documentElement.dataset.ready = "";
  }
  start().catch(complain);
})();
