"use strict";
// Names and the look of the graph, kept by the browser under the run's key; names.json carries names elsewhere.
subrank.names = (() => {
  let run = "";
  const shipped = new Map(); // came with the page
  const edited = new Map(); // written here; null where a shipped name was taken away
  const view = { hidden: new Set(), pinned: new Set() };

  function read(kind) {
    try {
      return JSON.parse(localStorage.getItem(`subrank ${kind} ${run}`)) || {};
    } catch {
      return {}; // storage is switched off, or holds something else
    }
  }
  function write(kind, value) {
    try {
      localStorage.setItem(`subrank ${kind} ${run}`, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }

  function start(key, names) {
    run = key;
    for (const [id, name] of Object.entries(names)) shipped.set(id, name);
    for (const [id, name] of Object.entries(read("names"))) if (name === null || typeof name === "string") edited.set(id, name);
    const seen = read("view");
    for (const kind of ["hidden", "pinned"]) if (Array.isArray(seen[kind])) view[kind] = new Set(seen[kind]);
  }

  const of = (id) => (edited.has(id) ? edited.get(id) : shipped.get(id)) || null;

  function set(id, text) {
    const name = text
      .replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, " ") // one line
      .slice(0, 120)
      .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "") // half of an emoji
      .trim();
    if (name) edited.set(id, name);
    else if (shipped.has(id)) edited.set(id, null);
    else edited.delete(id);
    return write("names", Object.fromEntries(edited));
  }

  function all() {
    const names = [...new Map([...shipped, ...edited])].filter(([, name]) => name);
    return Object.fromEntries(names.sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  function save() {
    const text = JSON.stringify({ run, names: all() }, null, 2) + "\n";
    const link = subrank.el("a", { download: "names.json" });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const keepView = () => write("view", { hidden: [...view.hidden], pinned: [...view.pinned] });

  return { start, of, set, all, save, view, keepView };
})();
