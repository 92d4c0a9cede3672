"use strict";
// What the picture is made of: boxes, arrows, the legend. They know nothing of each other.
subrank.marks = (() => {
  const { el, svg, button, number, effect, percent, visible } = subrank;

  // A node; `on` says what happens where it is opened, hovered over and reached with a key.
  function box(node, isTarget, on) {
    const box = el(
      "div",
      {
        class: `node ${node.kind}${isTarget ? " target" : ""}`,
        role: "button",
        tabindex: isTarget ? "0" : "-1",
        "data-id": node.id,
        onclick: () => on.node(node.id),
        onmouseenter: () => on.hover(node.id),
        onmouseleave: () => on.hover(null),
        onfocus: () => on.focus(node.id),
      },
      el("div", { class: "head" }, el("span", { class: "id" }, breakable(node)), el("span", { class: "share" }, node.kind === "feature" ? percent(node.density) : "")),
      el("div", { class: "name" }),
      (node.lines || []).map((line) => el("div", { class: "line" }, el("bdi", {}, visible(line)))),
    );
    entitle(box, node);
    return box;
  }

  // An id that is too long breaks after its site; a supernode's says how many it holds.
  function breakable(node) {
    if (node.kind === "group") return `${node.members.length} nodes`;
    const at = node.id.lastIndexOf(".") + 1;
    return [node.id.slice(0, at), el("wbr", {}), node.id.slice(at)];
  }

  // The name that is shown: one written here, the label, or what kind of node it is.
  function entitle(box, node) {
    const chosen = subrank.names.of(node.id);
    const name = chosen || node.label;
    box.classList.toggle("named", Boolean(chosen));
    box.classList.toggle("nameless", !name);
    box.querySelector(".name").replaceChildren(el("bdi", {}, visible(name || plainName(node))));
    box.setAttribute("aria-label", [node.id, name || plainName(node), ...(node.lines || [])].join(" "));
    const more = [...(node.lines || []), node.promotes.length && `promotes ${node.promotes.map(subrank.shown).join("  ")}`].filter(Boolean);
    box.title = [`${node.id}  ${name ? visible(name) : ""}`, ...more.map(visible)].join("\n");
  }
  const plainName = (node) => ({ error: "error term", output: node.id.replace(/^logit: /, "") })[node.kind] || "";

  function arrow(edge, on) {
    const data = edge.data;
    const group = svg(
      "g",
      { class: `edge ${data.effect >= 0 ? "supports" : "suppresses"}${data.solid ? "" : " faint"}`, "data-cause": data.cause, "data-target": data.target },
      svg("path", { class: "line", "stroke-width": (1 + 5 * edge.share).toFixed(2) }),
      svg("path", { class: "head" }),
      svg("path", { class: "hit", onclick: () => on.edge(data.cause, data.target), onmouseenter: () => on.hover(edge), onmouseleave: () => on.hover(null) }, svg("title", {}, edgeTitle(data))),
    );
    group.style.opacity = (data.solid ? 0.3 + 0.7 * edge.share : 0.2 + 0.35 * edge.share).toFixed(3);
    return group;
  }

  function edgeTitle(edge) {
    if (edge.members?.length > 1) return `${edge.cause} → ${edge.target}: ${effect(edge.effect)}, the sum of ${edge.members.length} arrows`;
    const error = edge.error === null ? "" : ` ± ${number(edge.error, 2)}`;
    return `${edge.cause} → ${edge.target}: ${effect(edge.effect)}${error}, active on ${edge.n_active} of ${edge.n_examples}`;
  }

  // Draw an arrow through the points of its way, from its cause up.
  function route(edge, points) {
    const tip = points.at(-1);
    const head = 4.5 + 1.1 * (1 + 5 * edge.share);
    let path = `M${points[0].x},${points[0].y}`;
    for (let i = 1; i < points.length; i++) {
      const [a, b] = [points[i - 1], i === points.length - 1 ? { x: tip.x, y: tip.y + head } : points[i]];
      const bend = (a.y - b.y) / 2;
      path += a.x === b.x ? `L${b.x},${b.y}` : `C${a.x},${a.y - bend} ${b.x},${b.y + bend} ${b.x},${b.y}`;
    }
    const [line, point, hit] = edge.group.children;
    line.setAttribute("d", path);
    hit.setAttribute("d", path);
    point.setAttribute("d", `M${tip.x},${tip.y}l${-head * 0.55},${head * 1.15}h${head * 1.1}z`);
  }

  function legend(data) {
    const line = (cls, width) =>
      svg("svg", { width: 34, height: 14, viewBox: "0 -2 34 14" }, svg("g", { class: `edge ${cls}` },
        svg("path", { class: "line", d: `M2,5H${27 - width}`, "stroke-width": width }),
        svg("path", { class: "head", d: `M33,5l-${7 + width},-${2.5 + width}v${5 + 2 * width}z` })));
    return el(
      "details",
      { class: "legend", open: window.innerWidth > 900 },
      el("summary", {}, "key"),
      el("span", {}, line("supports", 2.6), "supports its target"),
      el("span", {}, line("suppresses", 2.6), "inhibits its target"),
      el("span", {}, line("grey", 1), line("grey", 4), "weak, strong effect"),
      data.edges.some((edge) => !edge.solid) && el("span", {}, line("supports faint", 2.2), "no stronger than the control"),
      data.nodes.some((node) => node.kind === "error") && el("span", {}, el("i", { class: "boxkey error" }), "error term"),
    );
  }

  function zoomButtons() {
    const { zoom, fit } = subrank.camera;
    return el("div", { class: "zoom" }, button("+", "Zoom in (+)", () => zoom(1.25)), button("−", "Zoom out (−)", () => zoom(0.8)), button("⤢", "Fit (0)", fit));
  }

  return { box, entitle, arrow, edgeTitle, route, legend, zoomButtons };
})();
