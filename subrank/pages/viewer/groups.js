"use strict";
// Supernodes: nodes drawn as one box, in the highest row of its members, whose effects are summed.
subrank.groups = (() => {
  const MARK = "group: "; // begins the id of a supernode
  let on = {}; // what the page does: say, node, rename, close, changed
  const idOf = (name) => MARK + name;
  const nameOf = (id) => (id.startsWith(MARK) ? id.slice(MARK.length) : null);

  // The graph with the members of each group in one node, and arrows between the same two nodes in one.
  function fold(graph, groups) {
    const home = new Map();
    for (const [name, ids] of groups) for (const id of ids) home.set(id, idOf(name));
    const nodes = new Map();
    for (const node of graph.nodes) {
      const id = home.get(node.id) ?? node.id;
      if (id === node.id) nodes.set(id, node);
      else if (nodes.has(id)) nodes.get(id).members.push(node);
      else nodes.set(id, { id, kind: "group", label: nameOf(id), promotes: [], members: [node] });
    }
    for (const node of nodes.values())
      if (node.members) {
        node.lines = [node.members.map((member) => member.id).join(", ")];
        node.row = Math.max(...node.members.map((member) => member.row));
      }
    const edges = new Map();
    for (const edge of graph.edges) {
      const [cause, target] = [home.get(edge.cause) ?? edge.cause, home.get(edge.target) ?? edge.target];
      const key = `${cause}>${target}`;
      if (cause === target) continue;
      if (!edges.has(key)) edges.set(key, { cause, target, members: [] });
      edges.get(key).members.push(edge);
    }
    return { ...graph, target: home.get(graph.target) ?? graph.target, nodes: [...nodes.values()], edges: [...edges.values()].map(summed), home };
  }

  function summed({ cause, target, members }) {
    if (members.length === 1) return { ...members[0], cause, target, members };
    const effect = members.reduce((sum, edge) => sum + edge.effect, 0);
    return { cause, target, effect, error: null, solid: members.some((edge) => edge.solid), members };
  }

  // ---- what is done to groups ----

  function pinned() {
    const { view, group } = subrank.names;
    const ids = [...view.pinned].filter((id) => subrank.graph.drawn(id) && nameOf(id) === null);
    if (ids.length < 2) return on.say("Pin two or more nodes to group them.");
    for (const id of ids) view.pinned.delete(id);
    const id = idOf(group(`${ids.length} nodes`, ids));
    changed();
    on.node(id).then(() => on.rename(id));
  }
  function byLabel(groups) {
    for (const [name, ids] of groups) subrank.names.group(name, ids);
    changed();
  }
  // Draw the nodes of a group, or of all, one by one.
  function dissolve(name) {
    for (const other of name ? [name] : [...subrank.names.groups.keys()]) subrank.names.ungroup(other);
    changed();
    on.close();
  }
  function rename(name, text) {
    const ids = subrank.names.groups.get(name);
    subrank.names.ungroup(name);
    const id = idOf(subrank.names.group(text, ids));
    changed();
    return id;
  }
  function changed() {
    subrank.graph.regroup();
    subrank.names.keepView();
    on.changed();
  }

  return { start: (handlers) => (on = handlers), fold, nameOf, pinned, byLabel, dissolve, rename };
})();
