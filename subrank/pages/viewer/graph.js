"use strict";
// The picture: boxes are HTML, so that text is cut and turned as it should be; arrows are one SVG behind them.
subrank.graph = (() => {
  const { el, svg, button, number, effect } = subrank;
  const { width: W, height: H } = subrank.layout.SIZE;
  const MANY = 80; // beyond so many nodes a tidy picture of about so many arrows is drawn at first
  const FIRST = 60;

  const nodes = new Map(); // id -> {data, box, edges, place, on}
  let edges = []; // {data, group, size, share, on}, weakest first
  let data = null;
  let stage, world, rowLabels, layout;
  let limit = 0; // smallest |effect| drawn
  let onlyPinned = false;
  let tidy = false; // whether only what leads to the target by arrows that are drawn has a place
  let selected = null; // {node: id} or {edge: edge}
  let hovered = null; // id of a node, or an arrow

  const seen = () => subrank.names.view;
  const sizeOf = (x) => Math.abs(x || 0);

  // ---- building ----

  function build(host, graph, handlers) {
    [stage, data] = [host, graph];
    const { box, arrow, legend, zoomButtons } = subrank.marks;
    const on = { ...handlers, hover, focus: roving };
    world = el("div", { class: "world" });
    const arrows = svg("svg", { class: "arrows", "aria-hidden": "true" });
    world.append(arrows);
    const strongest = Math.max(...graph.edges.map((edge) => sizeOf(edge.effect)), 1e-12);
    edges = graph.edges.map((edge) => ({ data: edge, size: sizeOf(edge.effect), share: sizeOf(edge.effect) / strongest, on: true }));
    edges.sort((a, b) => a.size - b.size);
    for (const node of graph.nodes) nodes.set(node.id, { data: node, edges: [], on: true });
    for (const edge of edges) {
      arrows.append((edge.group = arrow(edge, on)));
      for (const end of ["cause", "target"]) nodes.get(edge.data[end]).edges.push(edge);
    }
    for (const node of nodes.values()) world.append((node.box = box(node.data, node.data.id === data.target, on)));
    rowLabels = el("div", { class: "rows", "aria-hidden": "true" }, graph.rows.map((label) => el("span", {}, label)));
    stage.append(world, rowLabels, controls(strongest), legend(data), zoomButtons());
    subrank.camera.start(stage, world, { size: () => layout, moved: labelRows, idle: handlers.nothing });
    tidy = nodes.size > MANY;
    const strengths = tidy ? [...reach().values()].sort((a, b) => b - a) : [];
    setLimit(strengths[FIRST - 1] || 0);
    place();
  }

  // ---- places ----

  // Lay out all nodes and arrows, or, when tidy, those that are drawn; rows that are empty then take no room.
  function place() {
    const placed = [...nodes.values()].filter((node) => !tidy || (node.on && (node.drawn || node.data.id === data.target)));
    const arrows = edges.filter((edge) => !tidy || edge.on);
    const rows = [...new Set(placed.map((node) => node.data.row))].sort((a, b) => a - b);
    const at = (node) => ({ id: node.data.id, row: rows.indexOf(node.data.row) });
    layout = subrank.layout.arrange(placed.map(at), arrows.map((edge) => edge.data), rows.length, subrank.camera.shape());
    for (const [id, node] of nodes) {
      node.place = layout.places.get(id) || null;
      node.box.hidden = !node.place || !node.on;
      if (node.place) node.box.style.transform = `translate(${node.place.x - W / 2}px, ${node.place.y}px)`;
    }
    arrows.forEach((edge, i) => subrank.marks.route(edge, layout.routes[i]));
    [...rowLabels.children].forEach((label, row) => {
      label.hidden = !rows.includes(row);
      label.dataset.y = (rows.length - 1 - rows.indexOf(row)) * layout.step + H / 2;
    });
    subrank.camera.fit();
    light();
  }

  function labelRows(view) {
    for (const label of rowLabels.children) label.style.transform = `translateY(${view.y + label.dataset.y * view.k}px)`;
  }

  // ---- controls ----

  function controls(strongest) {
    const slider = el("input", {
      id: "threshold",
      type: "range",
      min: 0,
      max: 1000,
      step: 1,
      value: 0,
      "aria-label": "Smallest effect shown",
      oninput: (event) => setLimit(strongest * (event.target.value / 1000) ** 2), // finer where most effects are
      onchange: () => tidy && place(),
    });
    return el(
      "div",
      { class: "controls" },
      el("label", { for: "threshold" }, "|effect| ≥ ", el("output", { id: "limit" }, "0")),
      slider,
      el("span", { id: "count" }),
      button("tidy", "Draw, and give room to, only what leads to the target (t)", () => tidyUp(), { id: "tidy" }),
      button("only pinned", "Show only pinned nodes and the arrows among them", toggleOnly, { id: "only", hidden: true }),
      button("", "Show hidden nodes again", showAll, { id: "unhide", hidden: true }),
    );
  }

  // ---- what is drawn ----

  function setLimit(value) {
    limit = value;
    const slider = stage.querySelector("#threshold");
    const at = Math.floor(1000 * Math.sqrt(value / Math.max(edges.at(-1)?.size || 1, 1e-12)));
    if (Math.abs(Number(slider.value) - at) > 1) slider.value = at;
    stage.querySelector("#limit").textContent = number(value, 2);
    refresh();
  }

  const allowed = (id) => !seen().hidden.has(id) && (!onlyPinned || seen().pinned.has(id));

  // Per arrow the largest limit at which it is drawn with a way to the target: along the best way, the weakest arrow.
  function reach() {
    if (!allowed(data.target)) return new Map();
    const [best, reached] = [new Map([[data.target, Infinity]]), new Map()];
    for (let again = true; again; ) {
      again = false;
      for (const edge of edges) {
        const { cause, target } = edge.data;
        const width = allowed(cause) ? Math.min(edge.size, best.get(target) ?? -1) : -1;
        reached.set(edge, width);
        if (width > (best.get(cause) ?? -1)) again = best.set(cause, width);
      }
    }
    return reached;
  }

  function refresh() {
    const reached = tidy ? reach() : new Map();
    for (const [id, node] of nodes) [node.on, node.drawn] = [allowed(id), false];
    let count = 0;
    for (const edge of edges) {
      const [from, to] = [nodes.get(edge.data.cause), nodes.get(edge.data.target)];
      const kept = (reached.get(edge) ?? edge.size) >= limit || (seen().pinned.has(edge.data.cause) && seen().pinned.has(edge.data.target));
      const on = kept && from.on && to.on;
      if (on !== edge.on) edge.group.style.display = on ? "" : "none";
      edge.on = on;
      if (on) count += from.drawn = to.drawn = true;
    }
    for (const [id, { box: element, on, drawn, place: placed }] of nodes) {
      element.hidden = !on || placed === null;
      element.classList.toggle("alone", !drawn && id !== data.target);
      element.classList.toggle("pinned", seen().pinned.has(id));
    }
    tell(count);
    light();
  }

  function tell(count) {
    const [unhide, only] = [stage.querySelector("#unhide"), stage.querySelector("#only")];
    const hidden = [...seen().hidden].filter((id) => nodes.has(id)).length;
    stage.querySelector("#count").textContent = `${count} of ${edges.length} arrows`;
    unhide.hidden = hidden === 0;
    unhide.textContent = `show ${hidden} hidden`;
    only.hidden = ![...seen().pinned].some((id) => nodes.has(id)) && !onlyPinned;
    only.setAttribute("aria-pressed", onlyPinned);
    stage.querySelector("#tidy").setAttribute("aria-pressed", tidy);
  }

  function changed() {
    subrank.names.keepView();
    refresh();
    if (tidy) place();
  }
  function toggleOnly() {
    onlyPinned = !onlyPinned;
    changed();
  }
  function showAll() {
    seen().hidden.clear();
    changed();
  }
  function flip(kind, id) {
    const ids = seen()[kind];
    if (!ids.delete(id)) ids.add(id);
    changed();
  }
  function tidyUp() {
    tidy = !tidy;
    refresh();
    place();
  }

  // ---- what is lit: the selected node or arrow, or what the pointer is on ----

  function hover(what) {
    hovered = what;
    light();
  }
  function select(what) {
    selected = what;
    light();
  }

  function light() {
    if (!layout) return; // a page of cards alone
    const at = hovered || selected?.node || edges.find((edge) => selected?.edge === edge.data) || null;
    const ends = new Set();
    const lit = [];
    for (const edge of edges) {
      const on = edge.on && at !== null && (edge === at || edge.data.cause === at || edge.data.target === at);
      edge.group.classList.toggle("lit", on);
      if (on) {
        lit.push(edge);
        ends.add(edge.data.cause).add(edge.data.target);
      }
    }
    world.classList.toggle("focus", lit.length > 0 || Boolean(nodes.get(at)?.place));
    for (const [id, node] of nodes) {
      node.box.classList.toggle("lit", id === at || ends.has(id));
      node.box.classList.toggle("selected", id === selected?.node);
    }
    sizes(lit);
  }

  // The effects of the arrows that are lit, where they are few enough to read, each on its own arrow.
  function sizes(lit) {
    world.querySelectorAll(".number").forEach((old) => old.remove());
    if (lit.length > 16) return;
    for (const edge of lit) {
      const line = edge.group.firstChild;
      const meeting = lit.filter((other) => other.data.target === edge.data.target).length > 1;
      const point = line.getPointAtLength(line.getTotalLength() * (meeting ? 0.3 : 0.62));
      const label = el("div", { class: `number ${edge.data.effect >= 0 ? "supports" : "suppresses"}` }, effect(edge.data.effect));
      label.style.transform = `translate(${point.x}px, ${point.y}px) translate(-50%, -50%)`;
      world.append(label);
    }
  }

  // ---- keys ----

  function roving(id) {
    for (const [other, node] of nodes) node.box.tabIndex = other === id ? 0 : -1;
  }

  function reveal(id) {
    const place = nodes.get(id)?.place;
    if (place && !stage.hidden) subrank.camera.reveal(place.x, place.y + H / 2, W, H);
  }

  function focus(id) {
    roving(id);
    nodes.get(id).box.focus({ preventScroll: true });
    reveal(id);
  }
  const focused = () => document.activeElement?.closest?.(".node")?.dataset.id || null;

  // To the nearest visible node of the next row in that direction, or the next one in the same row.
  function move(key) {
    const visible = [...nodes.values()].filter((node) => !node.box.hidden);
    const start = visible.find((node) => node.data.id === (focused() || selected?.node)) || visible.find((node) => node.data.id === data.target) || visible[0];
    if (!start) return;
    if (!focused()) return focus(start.data.id);
    const dx = (node) => node.place.x - start.place.x;
    const dy = (node) => start.data.row - node.data.row;
    const sideways = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
    const ahead = visible.filter((node) => (sideways ? dy(node) === 0 && sign * dx(node) > 0 : sign * dy(node) > 0));
    const far = (node) => (sideways ? Math.abs(dx(node)) : Math.abs(dy(node)) * 1e6 + Math.abs(dx(node)));
    ahead.sort((a, b) => far(a) - far(b));
    if (ahead.length) focus(ahead[0].data.id);
  }

  function renamed(id) {
    const node = nodes.get(id);
    if (node) subrank.marks.entitle(node.box, node.data);
  }

  const edge = (cause, target) => edges.find((e) => e.data.cause === cause && e.data.target === target)?.data || null;
  const around = (id) => (nodes.get(id)?.edges || []).map((e) => e.data).sort((a, b) => sizeOf(b.effect) - sizeOf(a.effect));
  const has = (id) => nodes.has(id);
  const node = (id) => nodes.get(id)?.data || null;

  return { build, select, flip, tidyUp, focused, move, reveal, renamed, edge, around, has, node };
})();
