"use strict";
// Pan and zoom of the circuit: a translation and a scale of everything in the stage's world.
subrank.camera = (() => {
  const SIDES = { left: 92, right: 26 };
  const [LEAST, MOST, FITTED] = [0.08, 3, 1.15];
  let stage = null;
  let world, size, moved, idle;
  let view = { x: 0, y: 0, k: 1 };

  // `size()` is the picture's, `moved(view)` hears of every change, `idle()` of a click beside everything.
  function start(host, picture, on) {
    [stage, world] = [host, picture];
    ({ size, moved, idle } = on);
    stage.addEventListener("wheel", wheel, { passive: false });
    drag();
  }

  // The part of the stage that neither the rows' labels nor the controls and the legend cover.
  function room() {
    const { width, height } = stage.getBoundingClientRect();
    const [above, below] = [".controls", ".legend"].map((part) => stage.querySelector(part).offsetHeight + 30);
    return { left: SIDES.left, top: above, width: width - SIDES.left - SIDES.right, height: height - above - below };
  }
  function shape() {
    const { width, height } = room();
    return height / Math.max(1, width);
  }

  function set(next) {
    view = next;
    world.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.k})`;
    stage.classList.toggle("far", view.k < 0.55);
    moved(view);
  }

  function zoom(factor, at) {
    if (!stage) return; // a page of cards alone
    const { width, height } = stage.getBoundingClientRect();
    const { x, y } = at || { x: width / 2, y: height / 2 };
    const k = Math.min(MOST, Math.max(LEAST, view.k * factor));
    set({ k, x: x - ((x - view.x) * k) / view.k, y: y - ((y - view.y) * k) / view.k });
  }

  function fit() {
    if (!stage) return;
    const [free, whole] = [room(), size()];
    if (free.width <= 0 || free.height <= 0) return;
    const k = Math.max(LEAST, Math.min(FITTED, free.width / whole.width, free.height / whole.height));
    set({ k, x: free.left + (free.width - whole.width * k) / 2, y: free.top + (free.height - whole.height * k) / 2 });
  }

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

  function drag() {
    let grip = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest(".node, .edge, .controls, .legend, .zoom")) return;
      grip = { x: event.clientX - view.x, y: event.clientY - view.y, from: [event.clientX, event.clientY] };
      stage.setPointerCapture(event.pointerId);
      stage.classList.add("panning");
    });
    stage.addEventListener("pointermove", (event) => {
      if (grip) set({ ...view, x: event.clientX - grip.x, y: event.clientY - grip.y });
    });
    const release = (event) => {
      const still = grip && Math.hypot(event.clientX - grip.from[0], event.clientY - grip.from[1]) < 4;
      grip = null;
      stage.classList.remove("panning");
      if (still && event.type === "pointerup") idle();
    };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
  }

  return { start, shape, zoom, fit, reveal };
})();
