"use strict";
// What the panel shows: a feature's card, an arrow and its examples, or the run as a whole.
subrank.card = (() => {
  const { el, button, chip, running, visible, number, effect, percent, many } = subrank;
  const BEFORE = 28; // tokens shown before an example's end, and after it
  const AFTER = 6;
  let open = {}; // {node(id), edge(cause, target), rename(id)}
  let joint = ""; // what stands between two tokens of a text

  const section = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);
  const link = (id, cls) => {
    const name = subrank.names.of(id) || subrank.graph.node(id)?.label || subrank.list.label(id);
    return el("button", { type: "button", class: `link ${cls || ""}`, "data-open": id, onclick: () => open.node(id) }, el("span", { class: "id" }, id), name ? el("bdi", {}, visible(name)) : null);
  };

  // ---- a feature ----

  function feature(id, card, node) {
    return [
      head(id, card, node),
      card ? facts(card) : node && nodeFacts(node),
      card?.rule && rule(card.rule),
      subrank.graph.has(id) && relations(id),
      node?.members && section("Nodes", el("ul", { class: "members" }, node.members.map((member) => el("li", {}, link(member.id))))),
      card && examples(card),
      card?.histogram && section("Activations", subrank.charts.histogram(card.histogram)),
      card?.drops && section("Effect on a logit", subrank.charts.drops(card.drops)),
      card && logits(card),
      card?.near?.length > 0 && section("Nearest features", el("ul", { class: "near" }, card.near.map((other) => el("li", {}, link(other.id), el("span", { class: "value" }, `cosine ${other.cosine.toFixed(2)}`))))),
    ].filter(Boolean);
  }

  function head(id, card, node) {
    const chosen = subrank.names.of(id);
    const text = chosen || card?.label?.short || node?.label || "";
    const { hidden, pinned } = subrank.names.view;
    const inGraph = subrank.graph.drawn(id);
    const group = subrank.groups.nameOf(id);
    return el(
      "header",
      { class: "cardhead" },
      el("div", { class: "row" }, el("span", { class: "id" }, group === null ? id : "group"), el("span", { class: "site" }, card?.site || ""), el("span", { class: "grow" }),
        group !== null && button("ungroup", "Draw its nodes one by one", () => subrank.groups.dissolve(group), { id: "dissolve" }),
        inGraph && button(pinned.has(id) ? "unpin" : "pin", "Keep arrows between pinned nodes drawn (p)", () => open.flip("pinned", id), { "aria-pressed": String(pinned.has(id)), id: "pin" }),
        inGraph && button(hidden.has(id) ? "show" : "hide", "Take out of the picture (h)", () => open.flip("hidden", id), { "aria-pressed": String(hidden.has(id)), id: "hide" }),
        button("rename", "Give it a name (r)", () => open.rename(id), { id: "rename" }),
        button("×", "Close (Escape)", () => open.close(), { class: "close", "aria-label": "Close" })),
      el("h2", { id: "name", class: chosen ? "named" : text ? "" : "nameless", ondblclick: () => open.rename(id) }, el("bdi", {}, visible(text) || (node?.kind === "error" ? "error term" : "no label"))),
      card?.label && el("p", { class: "note" }, el("bdi", {}, visible([...new Set([chosen && card.label.short, card.label.output, card.label.score])].filter(Boolean).join("   ")))),
    );
  }

  function facts(card) {
    const pairs = [
      ["density", percent(card.density), "Share of tokens on which it is active"],
      ["mean", number(card.mean_active), "Mean activation where active"],
      ["largest", number(card.max), "Largest activation"],
      ["at first position", percent(card.first_position), "Share of its summed activation on the first tokens of contexts"],
      ...(card.on_outliers >= 0.5 ? [["on massive tokens", percent(card.on_outliers), "Share of its summed activation that would fall on tokens of massive norm"]] : []),
      ["share of norm", percent(card.norm_share), "Share of the squared norm of the activations at its site"],
      ["tokens", many(card.n_tokens || 0), "Tokens it was measured on"],
    ];
    return el("dl", { class: "facts" }, pairs.map(([name, value, title]) => el("div", { title }, el("dt", {}, name), el("dd", {}, value))));
  }
  const nodeFacts = (node) =>
    node.kind === "feature" && el("dl", { class: "facts" }, el("div", {}, el("dt", {}, "density"), el("dd", {}, percent(node.density))));

  // The rule with its scores, each beside what the rules of other features get.
  function rule(scored) {
    const bar = (value, cls) => {
      const meter = el("i", { class: cls });
      meter.style.width = `${Math.round(100 * Math.min(1, Math.max(0, value || 0)))}%`;
      return meter;
    };
    const rows = ["precision", "recall", "correlation"].map((name) =>
      el("div", { class: "score" }, el("span", {}, name), el("span", { class: "meter" }, bar(scored[name], "label"), bar(scored.control?.[name], "control")), el("b", {}, number(scored[name], 2)), el("span", { class: "control" }, number(scored.control?.[name], 2))),
    );
    const kind = scored.kind === "pattern" ? "a pattern of tokens" : "a table of tokens";
    return section("A rule that predicts it", el("p", {}, el("bdi", {}, visible(scored.text))), ...rows, el("p", { class: "note" }, `The rule is ${kind}, scored on text it was not made from; in grey, what the rules of other features score on this one.`));
  }

  function relations(id) {
    const all = subrank.graph.around(id);
    const list = (title, edges, end) =>
      edges.length > 0 &&
      section(title, el("ul", { class: "edges" }, edges.map((edge) => el("li", {},
        el("button", { type: "button", class: `effect ${edge.effect >= 0 ? "supports" : "suppresses"}${edge.solid ? "" : " faint"}`, title: `${subrank.marks.edgeTitle(edge)}; show examples`, onclick: () => open.edge(edge.cause, edge.target) }, effect(edge.effect)),
        link(edge[end])))));
    return el("div", { class: "relations" }, list("Causes", all.filter((e) => e.target === id), "cause"), list("What it affects", all.filter((e) => e.cause === id), "target"));
  }

  // ---- examples: tokens shaded ----

  function examples(card) {
    const groups = new Map();
    for (const example of card.examples) groups.set(example.group, [...(groups.get(example.group) || []), example]);
    if (!groups.size) return section("Examples", el("p", { class: "note" }, "None was found."));
    const shade = (span, value) => span.style.setProperty("--warm", Math.min(1, Math.max(0, value / (card.max || 1))).toFixed(3));
    return section(
      "Examples",
      ...[...groups].map(([group, members], i) =>
        el("details", { open: i === 0 }, el("summary", {}, group === "top" ? "strongest" : `quantile ${visible(group)} of its activations`, el("span", { class: "note" }, ` ${members.length}`)),
          members.map((example) => text(example, (span, t) => shade(span, example.activations[t]), (t) => number(example.activations[t]), number(example.activations[example.end])))),
      ),
    );
  }

  function text(example, paint, title, value) {
    const { tokens, end } = example;
    const body = el("p", { class: "text", dir: "auto" });
    const draw = (from, to) => {
      const spans = [];
      for (let t = from; t < to; t++) {
        const span = el("bdi", { class: t === end ? "token end" : "token", title: `${visible(JSON.stringify(tokens[t]))}  ${title(t)}` }, running(tokens[t]));
        paint(span, t);
        spans.push(span);
      }
      const more = button("…", "Show the whole context", () => draw(0, tokens.length), { class: "more" });
      const last = button("…", "Show the whole context", () => draw(0, tokens.length), { class: "more" });
      const spaced = spans.flatMap((span, i) => (i ? [joint, span] : [span]));
      body.replaceChildren(...(from > 0 ? [more, " "] : []), ...spaced, ...(to < tokens.length ? [" ", last] : []));
    };
    draw(Math.max(0, end - BEFORE), Math.min(tokens.length, end + AFTER + 1));
    return el("div", { class: "example" }, body, el("span", { class: "value" }, value));
  }

  // ---- what it does to the output ----

  function logits(card) {
    if (!card.promotes.length && !card.suppresses.length) return null;
    const most = Math.max(...[...card.promotes, ...card.suppresses].map(([, value]) => Math.abs(value)), 1e-12);
    const column = (title, rows, cls) =>
      el("div", {}, el("h4", {}, title), el("ul", { class: `logits ${cls}` }, rows.map(([token, value]) => {
        const meter = el("i", {});
        meter.style.width = `${(100 * Math.abs(value)) / most}%`;
        return el("li", {}, chip(token), el("span", { class: "meter" }, meter), el("span", { class: "value" }, effect(value)));
      })));
    return section("Direct effect on the logits", el("div", { class: "columns" }, column("promotes", card.promotes, "supports"), column("suppresses", card.suppresses, "suppresses")));
  }

  // ---- an arrow ----

  function edge(arrow, shown) {
    if (arrow.members?.length > 1) return sum(arrow);
    const sign = arrow.effect >= 0 ? "supports" : "suppresses";
    const error = arrow.error === null ? "" : ` ± ${number(arrow.error, 2)}`;
    const rows = [
      ["effect", `${effect(arrow.effect)}${error}`, "Share of the target's activation lost when the cause alone is ablated"],
      ["control", (arrow.null ?? null) === null ? "not drawn" : number(arrow.null, 2), "99th percentile of |effect| along random directions"],
      ["active on", `${arrow.n_active} of ${arrow.n_examples}`, "Examples of the target on which the cause is active"],
      ["cosine", number(arrow.cosine, 2), "Cosine of the two directions"],
      arrow.direct !== null && ["directly", effect(arrow.direct), "The part of the effect that no block in between carries"],
      ...arrow.offsets.map(([back, size]) => [back ? `${back} back` : "same token", effect(size), "Effect of ablating the cause at this one position, by how far before the target's"]),
    ].filter(Boolean);
    return [
      el("header", { class: "cardhead" },
        el("div", { class: "row" }, el("span", { class: `badge ${sign}` }, arrow.effect >= 0 ? "supports" : "inhibits"), el("span", { class: "grow" }), button("×", "Close (Escape)", () => open.close(), { class: "close", "aria-label": "Close" })),
        el("div", { class: "ends" }, link(arrow.cause), el("span", { class: "to" }, "→"), link(arrow.target))),
      el("dl", { class: "facts" }, rows.map(([name, value, title]) => el("div", { title }, el("dt", {}, name), el("dd", {}, value)))),
      !arrow.solid && el("p", { class: "note" }, "No stronger than a random direction would be: drawn faint."),
      !arrow.certified && el("p", { class: "note" }, "Not certified: candidates were screened, and a stronger one may have been missed."),
      section("Examples", ...(shown ? pair(arrow, shown) : [el("p", { class: "note" }, "No examples were kept for this arrow.")])),
    ].filter(Boolean);
  }

  // An arrow between groups: the arrows that it stands for.
  const sum = (arrow) => [
    el("header", { class: "cardhead" },
      el("div", { class: "row" }, el("span", { class: `badge ${arrow.effect >= 0 ? "supports" : "suppresses"}` }, effect(arrow.effect)), el("span", { class: "grow" }), button("×", "Close (Escape)", () => open.close(), { class: "close", "aria-label": "Close" })),
      el("div", { class: "ends" }, link(arrow.cause), el("span", { class: "to" }, "→"), link(arrow.target))),
    el("p", {}, `The sum of ${arrow.members.length} effects, each of one node ablated alone; ablated together they may do more or less.`),
    section("Arrows", arrows(arrow.members)),
  ];
  const arrows = (edges) =>
    el("ul", { class: "edges whole" }, [...edges].sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).map((e) => el("li", {},
      el("button", { type: "button", class: `effect ${e.effect >= 0 ? "supports" : "suppresses"}`, onclick: () => open.edge(e.cause, e.target) }, effect(e.effect)),
      link(e.cause), el("span", { class: "to" }, "→"), link(e.target))));

  function pair(arrow, shown) {
    const most = (name) => Math.max(...shown.flatMap((example) => example[name]), 1e-12);
    const [cause, target] = [most("cause"), most("target")];
    const paint = (example) => (span, t) => {
      span.style.setProperty("--warm", Math.max(0, example.cause[t] / cause || 0).toFixed(3));
      span.style.setProperty("--cool", Math.max(0, example.target[t] / target || 0).toFixed(3));
    };
    return [
      el("p", { class: "note legendline" }, el("span", { class: "token warmkey" }, "shaded"), " the cause’s activation; ", el("span", { class: "token coolkey" }, "underlined"), " the target’s. The number: how the target changes when the cause is ablated."),
      ...shown.map((example) => text(example, paint(example), (t) => `cause ${number(example.cause[t])}, target ${number(example.target[t])}`, effect((-example.drop)))),
    ];
  }

  // ---- the run ----

  function overview(data) {
    const graph = data.graph;
    if (!graph) return [el("header", { class: "cardhead" }, el("h2", {}, `${many(data.features.n)} features`)), el("p", {}, "Choose one for its card.")];
    const solid = graph.edges.filter((e) => e.solid).length;
    const words = { exhaustive: "as exhaustive ablation finds", targets_asked: "targets searched", pairs_run: "ablations run" };
    const shown = (value) => (typeof value === "number" ? many(value) : typeof value === "boolean" ? (value ? "yes" : "no") : String(value));
    const known = Object.entries(graph.facts).filter(([name]) => name !== "search" || !graph.facts.exhaustive); // a screen that left nothing out
    const facts = known.map(([name, value]) => [el("dt", {}, words[name] || name.replaceAll("_", " ")), el("dd", {}, shown(value))]);
    return [
      el("header", { class: "cardhead" }, el("div", { class: "id" }, "target"), el("h2", {}, link(graph.target))),
      el("dl", { class: "facts four" }, [["nodes", graph.nodes.length], ["arrows", graph.edges.length], ["beyond control", solid], ["features", many(data.features.n)]].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))))),
      el("p", {}, "An arrow’s effect: the share of its target’s activation that is lost when its cause alone is ablated. Click a node for its card, an arrow for the examples behind it."),
      graph.quality.length > 0 && section("How good it is", graph.quality.map((line) => el("p", {}, line))),
      section("Strongest arrows", arrows([...graph.edges].sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, 8))),
      facts.length > 0 && section("How it was found", el("dl", { class: "howfound" }, facts)),
    ].filter(Boolean);
  }

  const start = (handlers, between) => ([open, joint] = [handlers, between]);
  return { start, feature, edge, overview, link };
})();
