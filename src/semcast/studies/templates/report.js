"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Charts: the page gives data and titles, the theme comes from the style sheet.
  const holder = $("figures");
  const figures = holder ? JSON.parse(holder.textContent) : {};
  const shown = {};
  const draw = (key) => {
    const css = getComputedStyle(document.documentElement);
    const of = (name) => css.getPropertyValue(name).trim();
    const axis = {
      gridcolor: of("--grid"), linecolor: of("--rule"), zeroline: false, automargin: true, ticks: "", showline: true,
      title: { standoff: 12 }, tickfont: { color: of("--soft"), size: 12 },
    };
    const figure = figures[key][shown[key]];
    const join = (mine) => ({ ...axis, ...mine, title: { ...axis.title, ...(mine.title || {}), font: { size: 12.5, color: of("--soft") } } });
    const layout = {
      ...figure.layout,
      height: figure.height || 360,
      margin: { l: 52, r: 14, t: 14, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: of("--ink") },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12.5 }, ...figure.layout.legend },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: of("--soft"), activecolor: of("--ink") },
      showlegend: true,
      hovermode: "closest",
      hoverlabel: { bgcolor: of("--card"), bordercolor: of("--rule"), font: { color: of("--ink"), size: 12.5 }, align: "left" },
      xaxis: join(figure.layout.xaxis), yaxis: join(figure.layout.yaxis),
    };
    Plotly.react("plot-" + key, figure.data, layout, {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d", "zoom2d"],
      toImageButtonOptions: { format: "svg", filename: "semcast-" + key },
    });
  };
  for (const key of Object.keys(figures)) {
    shown[key] = Number($("plot-" + key).dataset.start);
    draw(key);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.keys(figures).forEach(draw));
  document.querySelectorAll("select[data-chart]").forEach((select) =>
    select.addEventListener("change", () => { shown[select.dataset.chart] = Number(select.value); draw(select.dataset.chart); }));
  document.querySelectorAll(".choice").forEach((choice) =>
    choice.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      choice.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      shown[choice.dataset.chart] = Number(button.dataset.view);
      draw(choice.dataset.chart);
    }));

  // Pictures: scenes, error maps, and a wipe between received and original.
  const scenes = [...document.querySelectorAll(".scene")];
  const scene = $("scene");
  if (scene) scene.addEventListener("change", () => scenes.forEach((item, i) => { item.hidden = i !== Number(scene.value); }));
  const errors = $("errors");
  if (errors) {
    const set = () => $("moment").classList.toggle("show-errors", errors.checked);
    errors.addEventListener("change", set);
    if (location.hash === "#errors") errors.checked = true;
    set();
  }
  const wipe = $("wipe");
  const stage = wipe.querySelector(".stage");
  const range = $("wipe-range");
  const move = (percent) => { range.value = percent; stage.style.setProperty("--x", percent + "%"); };
  range.addEventListener("input", () => move(range.value));
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    move(Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width)));
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  document.querySelectorAll(".open").forEach((button) =>
    button.addEventListener("click", () => {
      $("wipe-received").src = button.querySelector("img").src;
      $("wipe-original").src = button.closest(".scene").querySelector(".original .picture").src;
      $("wipe-title").textContent = `${button.dataset.series} at ${button.dataset.snr}: ${button.dataset.psnr} dB`;
      move(50);
      wipe.showModal();
    }));
  $("wipe-close").addEventListener("click", () => wipe.close());
  wipe.addEventListener("click", (event) => { if (event.target === wipe) wipe.close(); });

  // Table: sort by a head, filter by words.
  const table = $("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const sort = (column) => {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.v;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) - Number(y);
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  };
  heads.forEach((head, column) => {
    head.addEventListener("click", () => sort(column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(column); });
  });
  $("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    [...body.rows].forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
  });

  const copy = $("copy");
  if (copy) copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText($("command").textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
})();
