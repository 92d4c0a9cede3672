"use strict";
// The picture: boxes are HTML, so that text is cut and turned as it should be; arrows are one SVG behind them.
subrank.graph = (() => {
  const { el, svg, button, number } = subrank;
  const { width: W, height: H } = subrank.layout.SIZE;
  const MANY = 25; // beyond so many nodes a tidy picture of the strongest arrows is drawn at first
  const FIRST = 20;
  const STEADY = 150; // strongest arrows that stay while the picture moves; more would make it stutter

  const picture = { stage: null, world: null, lit: null, nodes: new Map(), edges: [], layout: null, data: null };
  const { nodes } = picture; // id -> {data, box, edges, place, on}; edges: {data, group, size, share, on}, weakest first
  let whole = null; // the graph, without groups
  let usual = {}; // how it is drawn at first
  let handlers, rowLabels, strongest;
  let limit = 0; // smallest |effect| drawn
  let onlyPinned = false;
  let tidy = false; // whether only what leads to the target by arrows that are drawn has a place

  const seen = () => subrank.names.view;
  const sizeOf = (x) => Math.abs(x || 0);

  // ---- building ----

  function build(host, graph, on) {
    [picture.stage, whole] = [host, graph];
    const { legend, zoomButtons } = subrank.marks;
    handlers = { ...on, hover: subrank.light.hover, focus: subrank.light.roving };
    picture.world = el("div", { class: "world" });
    rowLabels = el("div", { class: "rows", "aria-hidden": "true" }, graph.rows.map((label) => el("span", {}, label)));
    host.append(picture.world, rowLabels, controls(), legend(graph), zoomButtons());
    subrank.camera.start(host, picture.world, { size: () => picture.layout, moved: labelRows, settled: subrank.light.light, idle: on.nothing });
    subrank.light.start(picture);
    compose();
    tidy = nodes.size > MANY;
    const strengths = tidy ? [...reach().values()].sort((a, b) => b - a) : [];
    setLimit(strengths[FIRST - 1] || 0);
    place();
    usual = { limit, tidy, only: false };
  }

  // How it is drawn, where that is not as at first; and to draw it so again.
  function state() {
    return Object.fromEntries(Object.entries({ limit, tidy, only: onlyPinned }).filter(([name, value]) => value !== usual[name]));
  }
  function restore(address) {
    const value = (name) => address[name] ?? usual[name];
    [limit, tidy, onlyPinned] = ["limit", "tidy", "only"].map(value);
    regroup();
  }

  // The boxes and arrows of the graph as it is grouped now.
  function compose() {
    const { box, arrow } = subrank.marks;
    const data = (picture.data = subrank.groups.fold(whole, subrank.names.groups));
    const arrows = svg("svg", { class: "arrows", "aria-hidden": "true" });
    nodes.clear();
    picture.layout = null;
    strongest = Math.max(...data.edges.map((edge) => sizeOf(edge.effect)), 1e-12);
    const edges = data.edges.map((edge) => ({ data: edge, size: sizeOf(edge.effect), share: sizeOf(edge.effect) / strongest, on: true }));
    picture.edges = edges.sort((a, b) => a.size - b.size);
    for (const node of data.nodes) nodes.set(node.id, { data: node, edges: [], on: true });
    for (const [i, edge] of edges.entries()) {
      arrows.append((edge.group = arrow(edge, handlers)));
      edge.group.classList.toggle("weak", i < edges.length - STEADY);
      for (const end of ["cause", "target"]) nodes.get(edge.data[end]).edges.push(edge);
    }
    for (const node of nodes.values()) {
      node.box = box(node.data, node.data.id === data.target, handlers);
      subrank.camera.grip(node.box, (dx, dy) => shift(node, dx, dy));
    }
    picture.lit = svg("svg", { class: "lit", "aria-hidden": "true" });
    picture.world.replaceChildren(arrows, picture.lit, ...[...nodes.values()].map((node) => node.box));
  }

  function regroup() {
    compose();
    setLimit(Math.min(limit, strongest));
    place();
  }

  // ---- places ----

  // Lay out all nodes and arrows, or, when tidy, those that are drawn; rows that are empty then take no room.
  function place() {
    const { data, edges } = picture;
    const kept = ({ id }) => id === data.target || seen().pinned.has(id);
    const placed = [...nodes.values()].filter((node) => !tidy || (node.on && (node.drawn || kept(node.data))));
    const arrows = edges.filter((edge) => !tidy || edge.on);
    if (!placed.length) return void nodes.forEach((node) => (node.box.hidden = true));
    const rows = [...new Set(placed.map((node) => node.data.row))].sort((a, b) => a - b);
    const at = (node) => ({ id: node.data.id, row: rows.indexOf(node.data.row) });
    const layout = subrank.layout.arrange(placed.map(at), arrows.map((edge) => edge.data), rows.length, subrank.camera.shape());
    picture.layout = layout;
    for (const [id, node] of nodes) {
      node.place = layout.places.get(id) || null;
      node.box.hidden = !node.place || !node.on;
      stand(node);
    }
    arrows.forEach((edge, i) => subrank.marks.route(edge, (edge.points = layout.routes[i])));
    [...rowLabels.children].forEach((label, row) => {
      label.hidden = !rows.includes(row);
      label.dataset.y = (rows.length - 1 - rows.indexOf(row)) * layout.step + H / 2;
    });
    subrank.camera.first(nodes.get(data.target).place || { x: 0, y: 0 });
    subrank.light.light();
  }

  function stand(node) {
    if (node.place) node.box.style.transform = `translate(${node.place.x - W / 2}px, ${node.place.y}px)`;
  }

  // Move a box until the next layout; its arrows' ends go with it.
  function shift(node, dx, dy) {
    const by = (point) => Object.assign(point, { x: point.x + dx, y: point.y + dy });
    by(node.place);
    stand(node);
    for (const edge of node.edges.filter((edge) => edge.points)) {
      by(edge.data.cause === node.data.id ? edge.points[0] : edge.points.at(-1));
      subrank.marks.route(edge, edge.points);
    }
    subrank.light.light();
  }

  function labelRows(view) {
    for (const label of rowLabels.children) label.style.transform = `translateY(${view.y + label.dataset.y * view.k}px)`;
  }

  // ---- controls ----

  function controls() {
    const slider = el("input", {
      id: "threshold",
      type: "range",
      min: 0,
      max: 1000,
      step: 1,
      value: 0,
      "aria-label": "Smallest effect shown",
      oninput: (event) => setLimit(strongest * (event.target.value / 1000) ** 2), // finer where most effects are
      onchange: () => (tidy && place(), handlers.changed()),
    });
    const named = (id, text, title, act) => button(text, title, act, { id, hidden: true });
    return el(
      "div",
      { class: "controls" },
      el("label", { for: "threshold" }, "|effect| ≥ ", el("output", { id: "limit" }, "0")),
      slider,
      el("span", { id: "count" }),
      button("tidy", "Draw, and give room to, only what leads to the target (t)", () => tidyUp(), { id: "tidy" }),
      named("only", "only pinned", "Show only pinned nodes and the arrows among them", toggleOnly),
      named("unhide", "", "Show hidden nodes again", showAll),
      named("group", "group pinned", "Draw the pinned nodes as one (g)", subrank.groups.pinned),
      named("bylabel", "group by label", "Draw nodes of one label and layer as one", () => subrank.groups.byLabel(whole.groups)),
      named("ungroup", "ungroup", "Draw every node by itself", () => subrank.groups.dissolve()),
    );
  }

  // ---- what is drawn ----

  function setLimit(value) {
    limit = value;
    const slider = picture.stage.querySelector("#threshold");
    const at = Math.floor(1000 * Math.sqrt(value / strongest));
    if (Math.abs(Number(slider.value) - at) > 1) slider.value = at;
    picture.stage.querySelector("#limit").textContent = number(value, 2);
    refresh();
  }

  const allowed = (id) => !seen().hidden.has(id) && (!onlyPinned || seen().pinned.has(id));

  // Per arrow the largest limit at which it is drawn with a way to the target: along the best way, the weakest arrow.
  function reach() {
    const { data, edges } = picture;
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
    const { data, edges } = picture;
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
    subrank.light.light();
  }

  function tell(count) {
    const at = (id) => picture.stage.querySelector(`#${id}`);
    const [hidden, pinned] = ["hidden", "pinned"].map((kind) => [...seen()[kind]].filter((id) => nodes.has(id)).length);
    const grouped = subrank.names.groups.size > 0;
    at("count").textContent = `${count} of ${picture.edges.length} arrows`;
    at("unhide").hidden = hidden === 0;
    at("unhide").textContent = `show ${hidden} hidden`;
    at("only").hidden = pinned === 0 && !onlyPinned;
    at("only").setAttribute("aria-pressed", onlyPinned);
    at("group").hidden = pinned < 2;
    at("bylabel").hidden = grouped || !whole.groups.length;
    at("ungroup").hidden = !grouped;
    at("tidy").setAttribute("aria-pressed", tidy);
  }

  function changed() {
    subrank.names.keepView();
    refresh();
    if (tidy) place();
    handlers.changed();
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
    handlers.changed();
  }

  // Bring a node into sight; one that is not drawn has a place where nothing is tidied away.
  function show(id) {
    const node = nodes.get(picture.data?.home.get(id) ?? id);
    if (!node) return;
    if (!node.place || !node.on) {
      seen().hidden.delete(node.data.id);
      [tidy, onlyPinned] = [false, false];
      changed();
      place();
    }
    subrank.light.reveal(id);
  }

  function renamed(id) {
    const node = nodes.get(id);
    if (node) subrank.marks.entitle(node.box, node.data);
  }

  // ---- what there is: nodes and edges of the graph, and the supernodes and sums that are drawn ----

  const same = (cause, target) => (edge) => edge.cause === cause && edge.target === target;
  const edge = (cause, target) => whole?.edges.find(same(cause, target)) || picture.data?.edges.find(same(cause, target)) || null;
  const node = (id) => whole?.nodes.find((other) => other.id === id) || nodes.get(id)?.data || null;
  function around(id) {
    const { edges } = nodes.has(id) ? picture.data : whole;
    return edges.filter((e) => e.cause === id || e.target === id).sort((a, b) => sizeOf(b.effect) - sizeOf(a.effect));
  }
  const drawn = (id) => nodes.has(id);
  const has = (id) => node(id) !== null;
  const all = () => whole?.nodes || [];

  return { build, restore, regroup, flip, tidyUp, show, renamed, edge, node, around, drawn, has, all, state };
})();
