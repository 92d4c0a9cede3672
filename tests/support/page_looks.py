"""Pages as people see them: at a width of the window, on light and on dark paper, with enough contrast."""

from chromium import Page

CONTRAST = """(() => {
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c) && c !== "transparent") return c; } return "rgb(255, 255, 255)" };
  const worst = {};
  for (const e of document.querySelectorAll("SELECTOR")) {
    if (!e.getClientRects().length || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(paper(e))].sort((x, y) => y - x);
    const name = `${e.tagName} ${e.className} in ${e.parentElement.className}`;
    worst[name] = Math.min(worst[name] || 99, (a + 0.05) / (b + 0.05));
  }
  return Object.entries(worst).filter(([, ratio]) => ratio < 4.5) })()"""
"""Elements whose text has less contrast to what is behind it than WCAG 2 asks for (4.5), with their contrast."""


def look(page: Page, path, width: int, scheme: str) -> None:
    """Open a file at a width of the window, in light or dark."""
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.send("Page.navigate", url=path.resolve().as_uri())
    page.wait("document.readyState === 'complete' && document.querySelector('h1')")


def unreadable(page: Page, selector: str) -> list:
    return page.run(CONTRAST.replace("SELECTOR", selector))
