"use strict";
// Draws the figures in the page's colours when they come near the screen, makes tables sortable and
// filterable, and commands copyable. The live page asks for its content again and again.
(() => {
  const root = document.documentElement;
  const config = { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg" } };
  const kept = {}; // what the reader has chosen, kept over a refresh
  const frozen = document.getElementById("figures");
  const main = document.querySelector("main");
  let figures = frozen ? JSON.parse(frozen.textContent) : {};

  function template() {
    const style = getComputedStyle(root);
    const colour = name => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false,
      automargin: true, title: { standoff: 8 } };
    const clear = "rgba(0,0,0,0)";
    return { layout: {
      paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
      margin: { l: 50, r: 14, t: 10, b: 44 }, hoverlabel: { namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      coloraxis: { colorscale: [[0, colour("--low")], [1, colour("--high")]],
        colorbar: { thickness: 12, outlinewidth: 0 } } } };
  }

  function draw(plot, width) {
    const figure = figures[plot.dataset.figure];
    if (!figure) return;
    const layout = { ...figure.layout, template: template(), uirevision: "kept" };
    if (width) layout.width = width;
    Plotly.react(plot, figure.data, layout, config);
  }

  const plots = () => document.querySelectorAll(".plot");
  const drawn = plot => plot.classList.contains("js-plotly-plot");
  const near = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting && !drawn(entry.target)) draw(entry.target);
  }), { rootMargin: "600px" });

  function redraw(every, width) {
    plots().forEach(plot => { if (every || drawn(plot)) draw(plot, width); });
  }

  // A cell's number; text sorts after all numbers.
  function key(text) {
    const number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  }
  function compare(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  function sort(table, column, descending) {
    const rows = [...table.tBodies[0].rows].map(row => [key(row.cells[column].textContent), row]);
    rows.sort(([a], [b]) => {
      const mixed = typeof a !== typeof b || typeof a === "string";
      return mixed && typeof a !== typeof b ? compare(a, b) : descending ? compare(b, a) : compare(a, b);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      cell.setAttribute("aria-sort", place !== column ? "none" : descending ? "descending" : "ascending");
    });
  }

  // Words that a row must contain, or conditions on a column such as `lr<0.01`.
  function matches(row, words, headings) {
    return words.every(word => {
      const [, name, sign, text] = word.match(/^([^<>=]+)(<|>|=)(.+)$/) ?? [];
      const column = name ? headings.findIndex(h => h.startsWith(name)) : -1;
      if (column < 0) return row.textContent.toLowerCase().includes(word);
      const cell = row.cells[column].textContent.toLowerCase();
      if (sign === "=") return cell === text || key(cell) === key(text);
      const order = compare(key(cell), key(text));
      return typeof key(cell) === "number" && (sign === "<" ? order < 0 : order > 0);
    });
  }

  function prepare(table) {
    const state = kept[table.id] ??= { words: "", column: -1, descending: false };
    const heads = [...table.tHead.rows[0].cells];
    const headings = heads.map(cell => cell.textContent.toLowerCase());
    const form = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("span");
    form.className = "filter";
    form.append("Filter", input, count);
    input.placeholder = "pruned   lr<0.01   trial=12";
    input.value = state.words;
    const filter = () => {
      state.words = input.value;
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        row.hidden = !matches(row, words, headings);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
    };
    heads.forEach((cell, column) => {
      const button = document.createElement("button");
      button.textContent = cell.textContent;
      cell.replaceChildren(button);
      button.onclick = () => {
        const descending = state.column === column ? !state.descending : false;
        Object.assign(state, { column, descending });
        sort(table, column, descending);
      };
    });
    input.oninput = filter;
    table.closest(".scroll").before(form);
    if (state.column >= 0) sort(table, state.column, state.descending);
    filter();
  }

  function copyable(box) {
    const code = box.querySelector("code"), button = document.createElement("button");
    button.textContent = "Copy";
    button.onclick = async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch { // not a secure context
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
    };
    box.append(button);
  }

  function arrange() {
    document.querySelectorAll("table[data-interactive]").forEach(prepare);
    document.querySelectorAll(".command").forEach(copyable);
    plots().forEach(plot => near.observe(plot));
  }

  const reset = () => { root.classList.remove("light"); redraw(false); };
  addEventListener("beforeprint", () => { root.classList.add("light"); redraw(true, 660); });
  addEventListener("afterprint", reset);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(false));

  // Replaces the content, and keeps drawn figures, open details, scroll positions and the filter.
  function show(content) {
    const every = selector => [...document.querySelectorAll(selector)];
    const earlier = new Map(every(".plot").filter(drawn).map(plot => [plot.dataset.figure, plot]));
    const open = every("details[open]").map(details => details.id);
    const boxes = every(".scroll.all").map(box => [box.scrollLeft, box.scrollTop]);
    const typing = document.activeElement?.closest(".filter") !== null && document.activeElement.value;
    const place = scrollY;
    figures = content.figures;
    main.innerHTML = content.html;
    plots().forEach(plot => {
      const before = earlier.get(plot.dataset.figure);
      if (!before) return;
      before.style.cssText = plot.style.cssText;
      plot.replaceWith(before);
      draw(before);
    });
    open.forEach(id => document.getElementById(id)?.setAttribute("open", ""));
    arrange();
    every(".scroll.all").forEach((box, at) => box.scrollTo(...(boxes[at] ?? [0, 0])));
    if (typing !== false) document.querySelector(".filter input")?.focus();
    scrollTo(0, place);
  }

  let latest = "";
  async function refresh() {
    const address = `${location.pathname.replace(/\/$/, "")}/content`;
    document.getElementById("lost")?.remove();
    try {
      const answer = await fetch(address, { signal: AbortSignal.timeout(60000) });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (text !== latest) show(JSON.parse(latest = text));
    } catch {
      const lost = document.createElement("p");
      Object.assign(lost, { id: "lost", className: "running",
        textContent: "The dashboard does not answer. What follows may be old." });
      main.prepend(lost);
    }
    setTimeout(refresh, document.hidden ? 30000 : 3000);
  }

  if (frozen) arrange();
  else refresh();
})();
