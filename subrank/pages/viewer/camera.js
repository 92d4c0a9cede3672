"use strict";
// Pan and zoom of the circuit: a translation and a scale of everything in the stage's world.
// Text asks for a size on the screen (`--k` is the scale, in steps).
subrank.camera = (() => {
  const [LEAST, MOST, FITTED] = [0.08, 3, 1.15];
  const READABLE = 0.5; // the first view shows a part rather than text that is too small
  const STILL = 4; // pixels that a click may move
  let stage = null;
  let world, size, moved, settled, idle;
  let view = { x: 0, y: 0, k: 1 };
  let rest = 0; // the timer that ends a movement
  let step = null; // of the scale, the last one told to the text

  // `size()` is the picture's; `moved(view)` hears of every change, `settled()` of text of another size, `idle()` of a
  // click beside everything.
  function start(host, picture, on) {
    [stage, world] = [host, picture];
    ({ size, moved, settled, idle } = on);
    stage.addEventListener("wheel", wheel, { passive: false });
    drag();
  }

  // The part of the stage that neither the rows' labels nor the controls and the legend cover.
  function room() {
    const { width, height } = stage.getBoundingClientRect();
    const [above, below] = [".controls", ".legend"].map((part) => stage.querySelector(part).offsetHeight + 30);
    const left = stage.querySelector(".rows").offsetWidth;
    return { left, top: above, width: width - left - 36, height: height - above - below };
  }
  function shape() {
    const { width, height } = room();
    return height / Math.max(1, width);
  }

  function set(next) {
    view = next;
    stage.classList.add("moving");
    clearTimeout(rest);
    rest = setTimeout(settle, 200);
    world.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.k})`;
    moved(view);
  }

  // Once it stands still: text of a size to be read, and the arrows that were left out while it moved.
  function settle() {
    clearTimeout(rest);
    stage.classList.remove("moving");
    const now = 2 ** (Math.floor(3 * Math.log2(view.k)) / 3);
    stage.classList.toggle("far", now < 0.75);
    if (now === step) return;
    world.style.setProperty("--k", (step = now));
    settled();
  }

  function zoom(factor, at) {
    if (!stage) return; // a page of cards alone
    const { width, height } = stage.getBoundingClientRect();
    const { x, y } = at || { x: width / 2, y: height / 2 };
    const k = Math.min(MOST, Math.max(LEAST, view.k * factor));
    set({ k, x: x - ((x - view.x) * k) / view.k, y: y - ((y - view.y) * k) / view.k });
  }

  // All of the picture; `least` is the smallest scale, at which a picture that is too large shows the part at `top`.
  function fit(least = LEAST, top = null) {
    if (!stage) return;
    const [free, whole] = [room(), size()];
    if (free.width <= 0 || free.height <= 0) return;
    const all = Math.min(FITTED, free.width / whole.width, free.height / whole.height);
    const k = Math.max(least, all);
    const middle = { x: free.left + (free.width - whole.width * k) / 2, y: free.top + (free.height - whole.height * k) / 2 };
    const part = top && { x: free.left + free.width / 2 - top.x * k, y: free.top - top.y * k };
    set({ k, x: part && whole.width * k > free.width ? part.x : middle.x, y: part && whole.height * k > free.height ? part.y : middle.y });
    settle();
  }
  const first = (target) => fit(READABLE, target);

  // Bring a box of the world, given by its middle, into sight.
  function reveal(x, y, width, height) {
    const free = room();
    if (free.width <= 0) return;
    const into = (middle, half, low, high) => (middle - half < low ? low - middle + half : middle + half > high ? high - middle - half : 0);
    const [dx, dy] = [
      into(view.x + x * view.k, (width / 2) * view.k, free.left, free.left + free.width),
      into(view.y + y * view.k, (height / 2) * view.k, free.top - 8, free.top + free.height + 8),
    ];
    if (dx || dy) set({ ...view, x: view.x + dx, y: view.y + dy });
  }

  function wheel(event) {
    event.preventDefault();
    const { left, top } = stage.getBoundingClientRect();
    const step = event.deltaY * (event.deltaMode === 1 ? 16 : 1) * (event.ctrlKey ? 4 : 1);
    zoom(Math.exp(-Math.max(-200, Math.min(200, step)) / 600), { x: event.clientX - left, y: event.clientY - top });
  }

  // One pointer pans and two pinch. It is a drag once it has moved, so that a click on what lies below stays one.
  function drag() {
    const pointers = new Map();
    let still = true;
    const middle = () => {
      const all = [...pointers.values()];
      const [x, y] = ["x", "y"].map((axis) => all.reduce((sum, pointer) => sum + pointer[axis], 0) / all.length);
      return { x, y, apart: Math.hypot(all[0].x - x, all[0].y - y) };
    };
    stage.addEventListener("pointerdown", (event) => {
      const onNode = event.target.closest(".node") && event.pointerType !== "touch"; // a mouse moves the node
      if (event.button !== 0 || onNode || event.target.closest(".controls, .legend, .zoom")) return;
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      still = pointers.size === 1;
    });
    stage.addEventListener("pointermove", (event) => {
      const pointer = pointers.get(event.pointerId);
      if (!pointer || (still && Math.hypot(event.clientX - pointer.x, event.clientY - pointer.y) < STILL)) return;
      if (!stage.hasPointerCapture(event.pointerId)) stage.setPointerCapture(event.pointerId);
      still = false;
      stage.classList.add("panning");
      const before = middle();
      Object.assign(pointer, { x: event.clientX, y: event.clientY });
      const after = middle();
      set({ ...view, x: view.x + after.x - before.x, y: view.y + after.y - before.y });
      const { left, top } = stage.getBoundingClientRect();
      if (before.apart > 0) zoom(after.apart / before.apart, { x: after.x - left, y: after.y - top });
    });
    const release = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      stage.classList.toggle("panning", pointers.size > 0);
      if (still && event.type === "pointerup" && !event.target.closest(".node, .edge")) idle();
    };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
  }

  // What moves a box of the world with the mouse; `moved(dx, dy)` hears of it in the world's own units.
  function grip(box, moved) {
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      let last = event;
      let still = true;
      const move = (now) => {
        const [dx, dy] = [now.clientX - last.clientX, now.clientY - last.clientY];
        if (still && Math.hypot(dx, dy) < STILL) return;
        if (still) box.setPointerCapture(event.pointerId);
        still = false;
        last = now;
        moved(dx / view.k, dy / view.k);
      };
      const swallow = (click) => click.stopImmediatePropagation(); // a drag ends with a click that is none
      const end = () => {
        box.removeEventListener("pointermove", move);
        if (!still) box.addEventListener("click", swallow, { capture: true });
        setTimeout(() => box.removeEventListener("click", swallow, { capture: true }));
      };
      box.addEventListener("pointermove", move);
      box.addEventListener("lostpointercapture", end, { once: true });
      box.addEventListener("pointerup", end, { once: true });
    });
  }

  return { start, shape, zoom, fit, first, reveal, grip };
})();
