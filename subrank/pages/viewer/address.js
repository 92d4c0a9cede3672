"use strict";
// The address says what is open and how the circuit is drawn, so that a view can be linked to and gone back to.
//   #4_289   #2_135>3_95   #open=4_289&min=0.16&tidy=1&only=1&hide=2_7&pin=3_95&group=name%0A2_1%0A2_2&q=she&view=features
subrank.address = (() => {
  function read() {
    const text = location.hash.slice(1);
    if (!text.includes("=")) return { open: decoded(text) };
    const values = new URLSearchParams(text);
    if ([...values.keys()].every((name) => name === "view")) return { open: "", view: values.get("view") || "" };
    const limit = Number.parseFloat(values.get("min"));
    const flag = (name) => (values.has(name) ? values.get(name) === "1" : undefined);
    return {
      open: values.get("open") || "",
      limit: limit >= 0 ? limit : undefined,
      tidy: flag("tidy"),
      only: flag("only"),
      hidden: values.getAll("hide"),
      pinned: values.getAll("pin"),
      groups: Object.fromEntries(values.getAll("group").map((group) => group.split("\n")).map(([name, ...ids]) => [name, ids])),
      query: values.get("q") || "",
      view: values.get("view") || "",
    };
  }
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return ""; // not an address of ours
    }
  }

  // `push` where one may want to go back to what was there before.
  function write(state, push) {
    const values = new URLSearchParams();
    const put = (name, value) => value && values.append(name, value);
    put("open", state.open);
    if (state.limit !== undefined) values.append("min", Number(state.limit.toPrecision(3)));
    for (const name of ["tidy", "only"]) if (state[name] !== undefined) values.append(name, state[name] ? "1" : "0");
    for (const id of state.hidden) put("hide", id);
    for (const id of state.pinned) put("pin", id);
    for (const [name, ids] of state.groups) put("group", [name, ...ids].join("\n"));
    put("q", state.query);
    put("view", state.view);
    const alone = [...values.keys()].every((name) => name === "open");
    const hash = alone ? (state.open ? `#${encodeURIComponent(state.open)}` : "#") : `#${values}`;
    if ((location.hash || "#") !== hash) history[push ? "pushState" : "replaceState"](null, "", hash);
  }

  return { read, write };
})();
