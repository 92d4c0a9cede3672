"use strict";
// Names, groups and the look of the graph, kept by the browser under the run's key; names.json carries names and groups.
subrank.names = (() => {
  let run = "";
  const shipped = new Map(); // came with the page
  const edited = new Map(); // written here; null where a shipped name was taken away
  const view = { hidden: new Set(), pinned: new Set() };
  const groups = new Map(); // name -> ids of nodes, each in one group at most

  function read(kind) {
    try {
      return JSON.parse(localStorage.getItem(`subrank ${kind} ${run}`));
    } catch {
      return null; // storage is switched off, or holds something else
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

  const texts = (value) => Array.isArray(value) && value.every((each) => typeof each === "string");

  function start(key, names, shippedGroups) {
    run = key;
    for (const [id, name] of Object.entries(names)) shipped.set(id, name);
    setGroups(read("groups") ?? shippedGroups);
    for (const [id, name] of Object.entries(read("names") || {})) if (name === null || typeof name === "string") edited.set(id, name);
    const seen = read("view") || {};
    for (const kind of ["hidden", "pinned"]) if (texts(seen[kind])) view[kind] = new Set(seen[kind]);
  }

  const of = (id) => (edited.has(id) ? edited.get(id) : shipped.get(id)) || null;

  const cleaned = (text) =>
    text
      .replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, " ") // one line
      .slice(0, 120)
      .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "") // half of an emoji
      .trim();

  function set(id, text) {
    const name = cleaned(text);
    if (name) edited.set(id, name);
    else if (shipped.has(id)) edited.set(id, null);
    else edited.delete(id);
    return write("names", Object.fromEntries(edited));
  }

  // ---- groups ----

  function setGroups(value) {
    groups.clear();
    for (const [name, ids] of Object.entries(value || {})) if (texts(ids) && ids.length) groups.set(name, ids);
  }
  const keepGroups = () => write("groups", Object.fromEntries(groups));

  // Put nodes into one group, out of those they were in; the name is made one that no other group has.
  function group(text, ids) {
    const taken = new Set(ids);
    for (const [other, members] of [...groups]) {
      const left = members.filter((id) => !taken.has(id));
      if (left.length) groups.set(other, left);
      else groups.delete(other);
    }
    let name = cleaned(text) || "group";
    for (let i = 2; groups.has(name); i++) name = `${cleaned(text) || "group"} ${i}`;
    groups.set(name, ids);
    keepGroups();
    return name;
  }
  function ungroup(name) {
    groups.delete(name);
    keepGroups();
  }

  // ---- out of the browser ----

  function all() {
    const names = [...new Map([...shipped, ...edited])].filter(([, name]) => name);
    return Object.fromEntries(names.sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  function save() {
    const text = JSON.stringify({ run, names: all(), groups: Object.fromEntries(groups) }, null, 2) + "\n";
    const link = subrank.el("a", { download: "names.json" });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const keepView = () => write("view", { hidden: [...view.hidden], pinned: [...view.pinned] });

  return { start, of, set, all, save, view, keepView, groups, setGroups, group, ungroup };
})();
