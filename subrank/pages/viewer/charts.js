"use strict";
// Histograms, as SVG.
subrank.charts = (() => {
  const { el, svg, chip, shown, number, many } = subrank;
  const PALETTE = ["#3b6fb6", "#d98a2b", "#4c9f70", "#b65c7a", "#7c6bb0", "#3f9aa8", "#a58a3a", "#8a6d5c", "#5f8f3a", "#c46a4a"];
  const OTHER = "#cfd5dc";
  const BOX = { width: 400, height: 132, left: 40, right: 8, top: 8, bottom: 22 };

  // Round numbers that divide a range in about `n`.
  function ticks(low, high, n) {
    const raw = (high - low) / n;
    if (!(raw > 0)) return [low];
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((m) => raw <= m * unit * 1.0001);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
    return values;
  }

  function frame(edges, top, shares) {
    const [low, high] = [edges[0], edges.at(-1)];
    const x = (value) => BOX.left + ((value - low) / (high - low || 1)) * (BOX.width - BOX.left - BOX.right);
    const y = (value) => BOX.height - BOX.bottom - (value / (top || 1)) * (BOX.height - BOX.top - BOX.bottom);
    const picture = svg("svg", { class: "chart", viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
    for (const tick of ticks(0, top, 3))
      picture.append(
        svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: BOX.left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, shares ? `${Math.round(100 * tick)}%` : short(tick)),
      );
    for (const tick of ticks(low, high, 5))
      picture.append(svg("text", { class: "tick", x: x(tick), y: BOX.height - 7, "text-anchor": "middle" }, number(tick, 4)));
    return { picture, x, y };
  }
  const short = (n) => (n >= 1e6 ? `${number(n / 1e6)}M` : n >= 1e4 ? `${number(n / 1e3)}k` : number(n, 4));

  function bar(picture, x, y, edges, i, from, to, fill, title) {
    if (to <= from) return;
    const gap = x(edges[i + 1]) - x(edges[i]) > 4 ? 1 : 0;
    picture.append(
      svg("rect", { x: x(edges[i]), y: y(to), width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - gap), height: y(from) - y(to), fill }, svg("title", {}, title)),
    );
  }

  // Activations where active, stacked by token; `shares` shows what each bin is made of.
  function stacked({ edges, tokens, other }, shares) {
    const totals = other.map((n, i) => n + tokens.reduce((sum, token) => sum + token.counts[i], 0));
    const { picture, x, y } = frame(edges, shares ? 1 : Math.max(...totals, 1), shares);
    const layers = [...tokens.map((token, t) => [shown(token.token), token.counts, PALETTE[t % PALETTE.length]]), ["other tokens", other, OTHER]];
    totals.forEach((total, i) => {
      let base = 0;
      for (const [name, counts, fill] of layers) {
        const height = shares ? counts[i] / (total || 1) : counts[i];
        const span = `${number(edges[i])} to ${number(edges[i + 1])}`;
        bar(picture, x, y, edges, i, base, base + height, fill, `${name}: ${many(counts[i])} of ${many(total)} with activation ${span}`);
        base += height;
      }
    });
    return picture;
  }

  function histogram(activations) {
    const holder = el("div", {}, stacked(activations, false));
    const choice = el("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: flip }, "as shares");
    let shares = false;
    function flip() {
      shares = !shares;
      choice.setAttribute("aria-pressed", shares);
      holder.replaceChildren(stacked(activations, shares));
    }
    const key = activations.tokens.map((token, t) => el("span", {}, swatch(PALETTE[t % PALETTE.length]), chip(token.token)));
    const zero = activations.zero <= 1 ? subrank.percent(activations.zero) : many(activations.zero);
    return el(
      "div",
      { class: "histogram" },
      holder,
      el("div", { class: "key" }, key, el("span", {}, swatch(OTHER), "other"), choice),
      el("p", { class: "note" }, `Activation by token, where active; inactive on ${zero} of the tokens.`),
    );
  }
  function swatch(colour) {
    const square = el("i", {});
    square.style.background = colour;
    return square;
  }

  // The logit of a token less the same with the feature ablated.
  function drops(changes) {
    const { picture, x, y } = frame(changes.edges, Math.max(...changes.counts, 1), false);
    changes.counts.forEach((count, i) =>
      bar(picture, x, y, changes.edges, i, 0, count, changes.edges[i] + changes.edges[i + 1] >= 0 ? "#3b6fb6" : "#bf5a52", `${many(count)} with a change of ${number(changes.edges[i])} to ${number(changes.edges[i + 1])}`),
    );
    if (changes.mean >= changes.edges[0] && changes.mean <= changes.edges.at(-1))
      picture.append(svg("line", { class: "mean", x1: x(changes.mean), x2: x(changes.mean), y1: BOX.top, y2: BOX.height - BOX.bottom }));
    const verb = changes.mean > 0 ? "raises" : "lowers";
    return el("div", {}, picture, el("p", { class: "note" }, `Where it is active, the feature ${verb} the logit of `, chip(changes.token), ` by ${number(Math.abs(changes.mean))} on average: logit less the logit with the feature ablated.`));
  }

  return { histogram, drops, ticks };
})();
