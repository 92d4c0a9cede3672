"use strict";
// What of the picture is lit: the node or arrow that is selected or under the pointer, and what a search finds; and the
// walk from box to box with the keys.
subrank.light = (() => {
  const { el, effect } = subrank;
  const { width: W, height: H } = subrank.layout.SIZE;
  const MANY = 24; // beyond so many arrows their numbers could not be read
  const SPOTS = [0.38, 0.55, 0.25, 0.7, 0.46, 0.8]; // parts of an arrow's length where its number may stand
  let picture = null; // {stage, world, lit, nodes, edges, layout, data}
  let selected = null; // {node: id} or {edge: edge}
  let hovered = null; // id of a box, or an arrow

  const start = (drawn) => (picture = drawn);
  const home = (id) => picture.data.home.get(id) ?? id;

  function hover(what) {
    hovered = what;
    light();
  }
  function select(what) {
    selected = what;
    light();
  }

  function light() {
    if (!picture?.layout) return; // a page of cards alone
    const { nodes, edges, world } = picture;
    const open = selected?.node && home(selected.node);
    const at = hovered || open || edges.find(({ data }) => selected?.edge && (data === selected.edge || data.members.includes(selected.edge))) || null;
    const near = at === null ? [] : nodes.get(at)?.edges || edges.filter((edge) => edge === at);
    const lit = near.filter((edge) => edge.on);
    const ends = new Set(lit.flatMap((edge) => [edge.data.cause, edge.data.target]));
    picture.lit.replaceChildren(...lit.map((edge) => edge.group.cloneNode(true))); // above the others, which stay as they are drawn
    world.classList.toggle("focus", lit.length > 0 || Boolean(nodes.get(at)?.place));
    for (const [id, node] of nodes) {
      node.box.classList.toggle("lit", id === at || ends.has(id));
      node.box.classList.toggle("selected", id === open);
    }
    sizes(at === null ? edges.filter((edge) => edge.on) : lit, at === null);
  }

  // The effects of the arrows that are lit, or of all, where they are few enough to read, each on its own arrow, the
  // strongest first; of all, only those that find a free place.
  function sizes(shown, all) {
    picture.world.querySelectorAll(".number").forEach((old) => old.remove());
    if (shown.length > MANY) return;
    const taken = [];
    const letter = Math.max(12, 10.5 / picture.world.style.getPropertyValue("--k")); // as in the style sheet
    for (const edge of shown.filter((edge) => edge.points).reverse()) { // others have no place yet
      const spots = along(edge.group.firstChild);
      const apart = ({ x, y }) => taken.every((other) => Math.abs(other.x - x) > 4.2 * letter || Math.abs(other.y - y) > 1.3 * letter);
      const place = spots.find(apart) || (all ? null : spots[0]);
      if (!place) continue;
      const { x, y } = place;
      taken.push(place);
      const label = el("div", { class: `number ${edge.data.effect >= 0 ? "supports" : "suppresses"}` }, effect(edge.data.effect));
      label.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%)`;
      picture.world.append(label);
    }
  }

  // Places along an arrow, well inside the picture.
  function along(line) {
    const inside = (x) => Math.min(Math.max(x, 18), picture.layout.width - 18);
    return SPOTS.map((part) => line.getPointAtLength(line.getTotalLength() * part)).map(({ x, y }) => ({ x: inside(x), y }));
  }

  // Rings round what a search finds; null takes them away.
  function mark(ids) {
    if (!picture) return;
    const boxes = ids && new Set([...ids].map(home));
    picture.world.classList.toggle("searching", Boolean(boxes?.size));
    for (const [id, node] of picture.nodes) node.box.classList.toggle("match", Boolean(boxes?.has(id)));
  }

  // ---- keys ----

  function roving(id) {
    for (const [other, node] of picture.nodes) node.box.tabIndex = other === id ? 0 : -1;
  }

  function reveal(id) {
    const place = picture?.nodes.get(home(id))?.place;
    if (place && !picture.stage.hidden) subrank.camera.reveal(place.x, place.y + H / 2, W, H);
  }

  function focus(id) {
    roving(id);
    picture.nodes.get(id).box.focus({ preventScroll: true });
    reveal(id);
  }
  const focused = () => document.activeElement?.closest?.(".node")?.dataset.id || null;

  // To the nearest visible node of the next row in that direction, or the next one in the same row.
  function move(key) {
    const visible = [...picture.nodes.values()].filter((node) => !node.box.hidden);
    const begin = focused() || (selected?.node && home(selected.node));
    const start = visible.find((node) => node.data.id === begin) || visible.find((node) => node.data.id === picture.data.target) || visible[0];
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

  return { start, hover, select, light, mark, roving, reveal, focused, move };
})();
