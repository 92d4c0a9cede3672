"use strict";
// One global: the chunks of data call subrank.add, the parts of the page share the rest.
// Data reach the page as text nodes and attribute values only, never as markup.
const subrank = (() => {
  const KEPT = 24; // chunks of cards in memory
  const requests = new Map(); // name -> promise
  const waiting = new Map(); // name -> [resolve, reject]

  function add(name, value) {
    if (waiting.has(name)) waiting.get(name)[0](value);
    waiting.delete(name);
  }

  function load(name) {
    if (requests.has(name)) return requests.get(name);
    const promise = new Promise((resolve, reject) => {
      waiting.set(name, [resolve, reject]);
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        requests.delete(name);
        waiting.delete(name);
        reject(new Error(`data/${name}.js could not be read; is the folder complete?`));
      };
      document.head.append(script);
    });
    requests.set(name, promise);
    for (const old of requests.keys()) {
      if (requests.size <= KEPT) break;
      if (old.startsWith("features-") && old !== name && !waiting.has(old)) requests.delete(old);
    }
    return promise;
  }

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const button = (text, title, onclick, more) => el("button", { type: "button", title, onclick, ...more }, text);

  // What cannot be seen is shown as a sign: spaces that matter, ends of lines, marks that turn text around.
  const SIGNS = { "\n": "↵", "\r": "[CR]", "\t": "⇥" };
  const HIDDEN =
    /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\udb40-\udb43][\udc00-\udfff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  const code = (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
  const visible = (text) => text.replace(HIDDEN, (c) => SIGNS[c] || code(c));

  // A token by itself, as in a list: its own spaces are part of what it is.
  function shown(token) {
    if (token === "") return "∅";
    return visible(token).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  }
  // A token within running text: a space between words stays one.
  const running = (token) => (token === "" ? "" : /^ +$/.test(token) ? "␣".repeat(token.length) : visible(token));

  const chip = (token, cls) => el("bdi", { class: `chip ${cls || ""}`, title: visible(JSON.stringify(token)) }, shown(token));

  function number(x, digits = 3) {
    if (x === null || x === undefined || !Number.isFinite(x)) return "–";
    if (x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6)) return x.toExponential(1).replace("-", "−").replace("e+", "e");
    return String(Number(x.toPrecision(digits))).replace("-", "−");
  }
  // An effect: two decimals, or two digits where that says more.
  function effect(x) {
    if (x === null || x === undefined || !Number.isFinite(x)) return "–";
    const size = Math.abs(x);
    return (x < 0 ? "−" : "+") + (size >= 0.1 || size === 0 ? size.toFixed(2) : size >= 1e-4 ? size.toPrecision(2) : number(size, 2));
  }
  const percent = (x) =>
    x === null || x === undefined || !Number.isFinite(x) ? "–" : `${number(100 * x, Math.abs(x) < 0.1 ? 2 : 3)}%`;
  const many = (n) => n.toLocaleString("en-US");

  return { add, load, el, svg, button, shown, running, visible, chip, number, effect, percent, many };
})();
