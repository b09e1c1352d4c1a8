// The class browser: a name clicked anywhere shows its curve; typing filters the list. Texts are set as text, never as markup.
(() => {
  const { classes, kinds, first } = JSON.parse(document.getElementById("data").textContent);
  const detail = document.getElementById("detail"), svg = detail.querySelector("svg");
  const [left, right, top, bottom, width, height] = [38, 8, 8, 34, 360, 260];
  const x = (recall) => left + recall * (width - left - right);
  const y = (precision) => height - bottom - precision * (height - top - bottom);

  const make = (name, attributes, text) => {
    const node = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return svg.appendChild(node);
  };
  const element = (parent, name, text, kind) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return parent.appendChild(node);
  };

  const draw = (curve) => {
    svg.replaceChildren();
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      make("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
      make("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick * 100);
      make("text", { x: x(tick), y: height - bottom + 16, "text-anchor": tick === 1 ? "end" : "middle" }, tick * 100);
    }
    make("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "recall, %");
    make("text", { x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(top + height - bottom) / 2})` }, "precision, %");
    if (!curve.length) {
      make("text", { class: "nothing", x: x(0.5), y: y(0.5), "text-anchor": "middle" }, "nothing found");
      return;
    }
    let line = "", at = 0; // precision holds from the corner before up to this one, then falls
    for (const [recall, precision] of curve) {
      line += `${line ? "L" : "M"}${x(at / 1000).toFixed(1)} ${y(precision / 1000).toFixed(1)}L${x(recall / 1000).toFixed(1)} ${y(precision / 1000).toFixed(1)}`;
      at = recall;
    }
    make("path", { class: "area", d: `${line}L${x(at / 1000).toFixed(1)} ${y(0)}L${x(0)} ${y(0)}z` });
    make("path", { class: "curve", d: line + `L${x(at / 1000).toFixed(1)} ${y(0)}` });
  };

  const show = (index) => {
    const chosen = classes[index];
    detail.querySelector("h3").textContent = chosen.name;
    detail.querySelector(".sub").textContent = chosen.about;
    draw(chosen.curve);
    svg.setAttribute("aria-label", `precision and recall of ${chosen.name}`);
    const facts = detail.querySelector("dl"), mix = detail.querySelector(".mix");
    facts.replaceChildren();
    mix.replaceChildren();
    for (const [label, value] of chosen.facts) {
      const fact = element(facts, "div");
      element(fact, "dt", label);
      element(fact, "dd", value);
    }
    const total = chosen.mix.reduce((sum, count) => sum + count, 0);
    if (total) {
      const bar = element(mix, "li", undefined, "stack");
      chosen.mix.forEach((count, kind) => { if (count) element(bar, "i", undefined, `k${kind}`).style.flexGrow = count; });
      chosen.mix.forEach((count, kind) => {
        if (!count) return;
        const line = element(mix, "li");
        element(line, "span", undefined, `swatch k${kind}`);
        element(line, "span", kinds[kind], "words");
        element(line, "span", count, "score");
      });
    }
    document.querySelectorAll(".pick[aria-current]").forEach((button) => button.removeAttribute("aria-current"));
    document.querySelectorAll(`.pick[data-class="${index}"]`).forEach((button) => button.setAttribute("aria-current", "true"));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".pick");
    if (!button) return;
    show(Number(button.dataset.class));
    const box = detail.getBoundingClientRect();
    if (box.top < 0 || box.bottom > innerHeight) detail.scrollIntoView({ block: innerHeight > box.height ? "center" : "start" });
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of document.querySelectorAll(".classes tbody tr")) {
      const name = row.cells[0].dataset.value.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
    }
  });
  if (classes.length) show(first);
})();
