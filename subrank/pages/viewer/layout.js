"use strict";
// Where things stand: layers as rows, the input at the bottom; order by barycentres, then x by least squares.
// An arrow that passes rows keeps a lane of its own through each of them, so that it runs between boxes.
subrank.layout = (() => {
  const SIZE = { width: 148, height: 98, gap: 16, lane: 12, rise: 52 };
  const LANES = 600; // beyond so many, long arrows run behind the boxes

  // nodes [{id, row}], edges [{cause, target}] -> {places: Map id -> {x, y}, routes: [[{x, y}]], width, height, step}
  // Rows stand as far apart as fills a stage whose height is `shape` times its width, if not too far.
  function arrange(nodes, edges, nRows, shape) {
    const rows = Array.from({ length: nRows }, () => []);
    const items = new Map();
    const item = (row, half, node) => {
      const entry = { row, half, node, below: [], above: [], x: 0 };
      rows[row].push(entry);
      return entry;
    };
    for (const node of nodes) items.set(node.id, item(node.row, SIZE.width / 2, node.id));
    const chains = edges.map(({ cause, target }) => [items.get(cause), items.get(target)]);
    const long = chains.reduce((sum, [from, to]) => sum + Math.max(0, to.row - from.row - 1), 0);
    for (const chain of chains) {
      const [from, to] = chain;
      if (long <= LANES)
        for (let row = from.row + 1; row < to.row; row++) chain.splice(-1, 0, item(row, SIZE.lane / 2, null));
      for (let i = 1; i < chain.length; i++) {
        const [low, high] = [chain[i - 1], chain[i]];
        if (low.row >= high.row) continue;
        low.above.push(high);
        high.below.push(low);
      }
    }
    order(rows);
    place(rows);
    return measure(rows, items, chains, shape);
  }

  // ---- order within rows ----

  function order(rows) {
    const index = () => rows.forEach((row) => row.forEach((item, i) => (item.i = i)));
    index();
    let best = rows.map((row) => [...row]);
    let fewest = crossings(rows);
    for (let sweep = 0; sweep < 24 && fewest > 0; sweep++) {
      const up = sweep % 2 === 0;
      for (const row of up ? rows : [...rows].reverse()) {
        for (const item of row) {
          const near = up ? item.below : item.above;
          const total = near.reduce((sum, other) => sum + (other.i + 0.5) / rows[other.row].length, 0);
          item.key = near.length ? total / near.length : (item.i + 0.5) / row.length;
        }
        row.sort((a, b) => a.key - b.key || a.i - b.i);
        row.forEach((item, i) => (item.i = i));
      }
      const now = crossings(rows);
      if (now < fewest) [fewest, best] = [now, rows.map((row) => [...row])];
    }
    rows.forEach((row, r) => row.splice(0, row.length, ...best[r]));
    index();
  }

  // Pairs of arrows that cross between rows: inversions of (start, end), counted with a Fenwick tree.
  function crossings(rows) {
    let total = 0;
    for (const row of rows) {
      const size = Math.max(...rows.map((r) => r.length)) + 1;
      const tree = new Map();
      for (const item of row) {
        for (const other of item.above) {
          const key = other.row;
          if (!tree.has(key)) tree.set(key, { counts: new Array(size + 1).fill(0), n: 0 });
          const { counts, n } = tree.get(key);
          let upTo = 0;
          for (let i = other.i + 1; i > 0; i -= i & -i) upTo += counts[i];
          total += n - upTo;
        }
        for (const other of item.above) {
          const node = tree.get(other.row);
          node.n++;
          for (let i = other.i + 1; i <= size; i += i & -i) node.counts[i]++;
        }
      }
    }
    return total;
  }

  // ---- x: each item to the mean of its neighbours, boxes kept apart ----

  function place(rows) {
    for (const row of rows) spread(row, row.map(() => 0));
    for (let sweep = 0; sweep < 40; sweep++)
      for (const row of sweep % 2 ? rows : [...rows].reverse()) {
        const wanted = row.map((item) => {
          let [sum, weight] = [0, 0];
          for (const other of [...item.below, ...item.above]) {
            const w = item.node === null && other.node === null ? 6 : item.node === null || other.node === null ? 2 : 1;
            sum += w * other.x;
            weight += w;
          }
          return weight ? sum / weight : item.x;
        });
        spread(row, wanted);
      }
  }

  // Least squares under x[i+1] - x[i] >= room between the two: isotonic regression of x minus the tightest packing.
  function spread(row, wanted) {
    const offset = [0];
    for (let i = 1; i < row.length; i++) offset.push(offset[i - 1] + row[i - 1].half + row[i].half + SIZE.gap);
    const blocks = [];
    wanted.forEach((x, i) => {
      const weight = row[i].node === null ? 0.5 : 1;
      let block = { sum: weight * (x - offset[i]), weight, n: 1 };
      while (blocks.length && blocks.at(-1).sum / blocks.at(-1).weight > block.sum / block.weight) {
        const last = blocks.pop();
        block = { sum: last.sum + block.sum, weight: last.weight + block.weight, n: last.n + block.n };
      }
      blocks.push(block);
    });
    let i = 0;
    for (const block of blocks)
      for (let k = 0; k < block.n; k++, i++) row[i].x = block.sum / block.weight + offset[i];
  }

  // ---- coordinates and the arrows' ways ----

  function measure(rows, items, chains, shape) {
    const all = rows.flat();
    const left = Math.min(...all.map((item) => item.x - item.half));
    const right = Math.max(...all.map((item) => item.x + item.half));
    const gaps = Math.max(1, rows.length - 1);
    const most = Math.max(96, (right - left) / 12); // long flat arrows could not be told apart
    const rise = Math.min(most, Math.max(SIZE.rise, ((right - left) * shape - rows.length * SIZE.height) / gaps));
    const step = SIZE.height + rise;
    const y = (row) => (rows.length - 1 - row) * step;
    const places = new Map([...items].map(([id, item]) => [id, { x: item.x - left, y: y(item.row) }]));
    const ports = portsOf(chains, items);
    const routes = chains.map((chain, c) => {
      const points = [{ x: chain[0].x - left + ports.out.get(c), y: y(chain[0].row) }];
      for (const lane of chain.slice(1, -1)) {
        points.push({ x: lane.x - left, y: y(lane.row) + SIZE.height });
        points.push({ x: lane.x - left, y: y(lane.row) });
      }
      const end = chain.at(-1);
      points.push({ x: end.x - left + ports.in.get(c), y: y(end.row) + SIZE.height });
      return points;
    });
    return { places, routes, width: right - left, height: y(0) + SIZE.height, step };
  }

  // Arrows at one box begin and end side by side, in the order of where they come from and go to.
  function portsOf(chains, items) {
    const ports = { in: new Map(), out: new Map() };
    for (const kind of ["in", "out"]) {
      const groups = new Map([...items.values()].map((item) => [item, []]));
      chains.forEach((chain, c) => groups.get(kind === "in" ? chain.at(-1) : chain[0]).push(c));
      const other = (c) => (kind === "in" ? chains[c].at(-2) : chains[c][1]).x;
      for (const group of groups.values()) {
        group.sort((a, b) => other(a) - other(b) || a - b);
        const step = Math.min(22, (SIZE.width - 36) / Math.max(1, group.length - 1));
        group.forEach((c, i) => ports[kind].set(c, (i - (group.length - 1) / 2) * step));
      }
    }
    return ports;
  }

  return { arrange, SIZE };
})();
