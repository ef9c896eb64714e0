// The widget in the browser: draws the traits `page`, `live` and `curves` of `CohostWidget` (see
// view.py) and sends what the user asks for. Only what concerns the eye is kept here: the order of
// rows, open groups, the tab, the metric.

const MOST_OPEN = 4; // a group with more models is folded until the user opens it
const WHILE = "Other cells can be run meanwhile; leave these models alone until it ends.";
const TABS = ["Train", "Benchmark", "Code"];

let widgets = 0;

function render({ model, el }) {
  const id = `kc${Date.now().toString(36)}${widgets++}`;
  const local = { tab: "Train", folds: {}, sort: ["", 1], metric: "loss", isLog: false,
    isApart: false, smoothing: 0, copying: false, clicked: "", width: 640, n: 4, rates: "" };
  let due = 0, asked = 0;

  const send = (what, rest = {}) => model.send({ do: what, view: id, number: ++asked, ...rest });
  const draw = () => {
    if (!due) due = requestAnimationFrame(() => { due = 0; drawNow(); });
  };
  const keep = (values) => { Object.assign(local, values); draw(); };
  const page = () => model.get("page");
  const isAnswered = () => (page().answered[id] || 0) >= asked;
  const live = () => model.get("live");
  const isBusy = () => live().status !== "idle";
  const isRunning = (work) => isBusy() && live().work === work;
  const selected = () => page().rows.filter((row) => row.selected);

  const button = (text, onclick, props = {}) => h("button", { type: "button", onclick, ...props }, text);
  const alert = (where) => h("div", { key: "alert" + where, role: "alert", class: "kc-alert" },
    live().errors[where] || "");
  const muted = (...text) => h("span", { class: "kc-muted" }, ...text);

  // Models

  function models() {
    const rows = page().rows;
    if (!rows.length) {
      return [h("div", { key: "bar", class: "kc-bar" }, h("strong", {}, "Models"), refresh()),
        muted("There are no Keras models yet. Build and compile one; it appears here.")];
    }
    const usable = rows.filter((row) => row.usable);
    const pick = (value) => () => send("select", { names: usable.map((row) => row.name), value });
    const count = selected().length;
    return [
      h("div", { key: "bar", class: "kc-bar" },
        h("strong", {}, "Models"),
        muted(`${count} of ${rows.length} ticked`),
        button("Select all", pick(true), { disabled: isBusy() }),
        button("Select none", pick(false), { disabled: isBusy() || !count }),
        button("Copies…", () => keep({ copying: !local.copying }), {
          disabled: isBusy() || count !== 1, "aria-expanded": String(local.copying && count === 1),
          title: "Copies of the ticked model, with other initial weights or learning rates" }),
        refresh()),
      local.copying && count === 1 && copies(selected()[0].name),
      alert("models"), alert("copies"),
      h("div", { key: "table", class: "kc-scroll", role: "region", tabindex: "0",
        "aria-label": "table of models" }, table(rows)),
    ];
  }

  const refresh = () => button("Refresh", () => send("refresh"), {
    disabled: isBusy(), title: "Look at the namespace again" });

  function copies(name) {
    const make = (event) => {
      event.preventDefault();
      const rates = local.rates.split(/[\s,;]+/).filter(Boolean).map(Number);
      send("copies", { names: [name], value: Number(local.n), rates, trait: "copies" });
      keep({ copying: false });
    };
    return h("form", { key: "copies", class: "kc-bar", onsubmit: make },
      `Copies of ${name}:`,
      h("label", {}, "how many ", h("input", { type: "number", min: 2, value: local.n,
        disabled: local.rates.trim() !== "", oninput: (e) => (local.n = e.target.value) })),
      h("label", {}, "or one for each learning rate ", h("input", { type: "text", value: local.rates,
        placeholder: "0.1, 0.03, 0.01", oninput: (e) => keep({ rates: e.target.value }) })),
      h("button", { type: "submit" }, "Make copies"),
      button("Cancel", () => keep({ copying: false })));
  }

  const hasRun = () => Object.keys(live().members).length > 0;

  function columns() {
    const { factors, callbacks } = page();
    return [
      ["model", (row) => row.name],
      hasRun() && ["progress", (row) => live().members[row.name]?.fraction],
      hasRun() && ["last metrics", (row) => live().members[row.name]?.loss],
      ["parameters", (row) => row.parameters],
      ["x"], ["y"], ["validation"],
      ["batch size", (row) => row.batch_size], ["epochs", (row) => row.epochs],
      factors && [factors, (row) => row.factor],
      callbacks.length && ["callbacks"],
      ["learning rate", (row) => row.learning_rate],
    ].filter(Boolean);
  }

  function table(rows) {
    const heads = columns();
    const [by, direction] = local.sort;
    const key = heads.find(([name]) => name === by)?.[1];
    const compare = ([a], [b]) => {
      const [one, other] = [key(a), key(b)];
      if (one == null || other == null) return (one == null) - (other == null);
      return direction * (typeof one === "string" || typeof other === "string"
        ? String(one).localeCompare(String(other), undefined, { numeric: true }) : one - other);
    };
    const sorted = (blocks) => (key ? [...blocks].sort(compare) : blocks);
    const blocks = new Map(); // a block is one model, or all of a list or dict
    for (const row of rows) {
      const name = row.group ? `[${row.group}` : row.name;
      blocks.set(name, [...(blocks.get(name) || []), row]);
    }
    const body = [];
    const ticked = rows.filter((row) => row.selected);
    if (ticked.length > 1 && blocks.size > 1) body.push(forAll(ticked));
    for (const block of sorted([...blocks.values()])) {
      const group = block[0].group;
      if (!group) {
        body.push(single(block[0]));
        continue;
      }
      const isOpen = local.folds[group] ?? block.length <= MOST_OPEN;
      body.push(forGroup(group, block, isOpen));
      if (isOpen) body.push(...sorted(block.map((row) => [row])).map(([row]) => single(row)));
    }
    return h("table", {}, h("thead", {}, h("tr", {}, heads.map(([name, own]) =>
      h("th", { key: name, scope: "col", "aria-sort": by !== name ? null
          : direction > 0 ? "ascending" : "descending" },
        own ? button(name + (by === name ? (direction > 0 ? " ▲" : " ▼") : ""), () =>
          keep({ sort: by !== name ? [name, 1] : direction > 0 ? [name, -1] : ["", 1] }),
          { class: "kc-sort", title: `Sort by ${name}` }) : name)))),
      h("tbody", {}, body));
  }

  const cell = (key, ...children) => h("td", { key }, ...children);

  function single(row) {
    const tick = h("input", { type: "checkbox", checked: row.selected,
      disabled: isBusy() || !row.usable, onchange: (event) => tickAll([row.name], event) });
    const name = row.group ? row.name.slice(row.group.length) : row.name;
    return h("tr", { key: "row" + row.name, class: row.group ? "kc-inner" : "" },
      h("th", { key: "name", scope: "row" }, h("label", { title: row.shapes }, tick, " ",
        h("span", { "aria-hidden": row.group ? "true" : null }, name),
        row.group && h("span", { class: "kc-hidden" }, row.name))),
      ...progress(live().members[row.name], row.name),
      cell("kind", row.kind, " ", row.parameters === null ? muted("not built")
        : row.parameters.toLocaleString("en"), !row.usable && muted(", not compiled")),
      ...choices([row], row.name, row.selected),
      cell("rate", String(row.learning_rate)));
  }

  function forGroup(group, rows, isOpen) {
    const on = rows.filter((row) => row.selected), usable = rows.filter((row) => row.usable);
    const tick = h("input", { type: "checkbox", disabled: isBusy() || !usable.length,
      checked: on.length > 0 && on.length === rows.length,
      indeterminate: on.length > 0 && on.length < rows.length,
      onchange: (event) => tickAll(usable.map((row) => row.name), event) });
    const rates = rows.map((row) => row.learning_rate);
    const kinds = [...new Set(rows.map((row) => row.kind))];
    const counts = [...new Set(rows.map((row) => row.parameters))];
    return h("tr", { key: "group" + group, class: "kc-group" },
      h("th", { key: "name", scope: "row" },
        button(isOpen ? "▾" : "▸", () => keep({ folds: { ...local.folds, [group]: !isOpen } }), {
          class: "kc-fold", "aria-expanded": String(isOpen),
          "aria-label": `show each model of ${group}` }),
        h("label", {}, tick, ` ${group}, ${rows.length} models`,
          on.length > 0 && on.length < rows.length && muted(` (${on.length} ticked)`))),
      ...progress(live().groups[group], group),
      cell("kind", kinds.length > 1 ? "mixed" : kinds[0], " ",
        counts.length > 1 ? "" : counts[0] === null ? muted("not built") : counts[0].toLocaleString("en")),
      ...choices(on.length ? on : rows, group, on.length > 0),
      cell("rate", span(rates)));
  }

  function forAll(rows) {
    return h("tr", { key: "all", class: "kc-all" },
      h("th", { key: "name", scope: "row" }, `all ${rows.length} ticked`),
      ...progress(undefined, ""), cell("kind"), ...choices(rows, "all ticked", true), cell("rate"));
  }

  // One value, or the least and the largest.
  function span(values) {
    const all = [...new Set(values)];
    if (all.length === 1) return String(all[0]);
    if (all.some((one) => typeof one !== "number")) return "mixed";
    return `${Math.min(...all)} to ${Math.max(...all)}`;
  }

  const tickAll = (names, event) => send("select", { names, value: event.target.checked });

  // The cells for what can be chosen: for one model, or one value for several.
  function choices(rows, label, isOpen) {
    const names = rows.map((row) => row.name);
    const { options, factors, callbacks } = page();
    const shared = (lists) => {
      const unique = [...new Set(lists)].map((number) => options[number] || []);
      const others = unique.slice(1).map((one) => new Set(one.map(([value]) => JSON.stringify(value))));
      return unique.length === 1 ? unique[0]
        : (unique[0] || []).filter(([value]) => others.every((one) => one.has(JSON.stringify(value))));
    };
    const same = (values) => {
      const all = new Set(values.map((value) => JSON.stringify(value)));
      return all.size === 1 ? [...all][0] : undefined;
    };
    const pick = (name, values, found, choose) => {
      const value = same(values);
      const isThere = found.some(([one]) => JSON.stringify(one) === value);
      const text = found.find(([one]) => JSON.stringify(one) === value)?.[1]; // which may be cut
      return h("select", { key: name, "aria-label": `${name} of ${label}`, disabled: isBusy(),
          title: text || null, value: isThere ? value : "mixed", class: isThere && value === '""' ? "kc-missing" : "",
          onchange: (event) => choose(JSON.parse(event.target.value)) },
        !isThere && h("option", { key: "mixed", value: "mixed", disabled: true },
          value === undefined ? "mixed" : "choose…"),
        found.map(([one, text]) => h("option", { key: JSON.stringify(one),
          value: JSON.stringify(one) }, text)));
    };
    const choose = (trait) => (value) => send("choose", { trait, names, value });
    const plain = (values) => {
      const value = same(values);
      return value === undefined ? "mixed" : shown(JSON.parse(value));
    };
    const number = (trait, name, values) => {
      const value = same(values);
      if (!isOpen || value === "null") return value === "null" ? muted("dataset") : plain(values);
      return h("input", { type: "number", min: 1, "aria-label": `${name} of ${label}`,
        disabled: isBusy(), value: value === undefined ? "" : value,
        placeholder: value === undefined ? "mixed" : "",
        onchange: (event) => event.target.value && choose(trait)(Number(event.target.value)) });
    };
    const inputs = Math.max(...rows.map((row) => row.x.length));
    const alike = rows.every((row) => row.x.length === inputs);
    const x = !isOpen || !alike ? plain(rows.map((row) => row.x.join(", ")))
      : Array.from({ length: inputs }, (_, i) => pick(inputs > 1 ? `x ${i + 1}` : "x",
        rows.map((row) => row.x[i]), shared(rows.map((row) => row.options.x[i])), (value) =>
          inputs > 1 || rows.some((row) => row.options.x.length > 1)
            ? send("input", { names, input: i, value }) : choose("x")(value)));
    const from = (trait) => !isOpen ? plain(rows.map((row) => row[trait]))
      : pick(trait, rows.map((row) => row[trait]),
        shared(rows.map((row) => row.options[trait][0])), choose(trait));
    return [
      cell("x", x), cell("y", from("y")), cell("validation", from("validation")),
      cell("batch", number("batch_size", "batch size", rows.map((row) => row.batch_size))),
      cell("epochs", number("epochs", "epochs", rows.map((row) => row.epochs))),
      factors && cell("factor", number("factors", factors, rows.map((row) => row.factor)),
        rows.length === 1 && rows[0].step && muted(" batch ", rows[0].step)),
      callbacks.length > 0 && cell("callbacks", !isOpen ? plain(rows.map((row) => row.callbacks))
        : pick("callbacks", rows.map((row) => row.callbacks), callbacks, choose("callbacks"))),
    ].filter(Boolean);
  }

  function shown(value) {
    if (!Array.isArray(value)) return value == null ? "" : String(value);
    return typeof value[0] === "number" ? `last ${100 * value[0]} %` : value.join(", ") || "none";
  }

  function progress(member, label) {
    if (!hasRun()) return [];
    if (!member) return [cell("progress"), cell("metrics")];
    return [
      cell("progress", h("progress", { max: 1, value: member.fraction,
        "aria-label": `progress of ${label}` }), " ", member.state),
      h("td", { key: "metrics", class: "kc-metrics" }, member.note && h("strong", { class: "kc-note" }, member.note),
        member.note && member.metrics && " · ",
        member.metrics)];
  }

  // Layout

  function layout() {
    const { layouts, about, layout } = page();
    const why = layouts.filter(([, , reason]) => reason);
    return h("fieldset", { key: "layout", class: "kc-layout" },
      h("legend", {}, "Layout"),
      h("div", { class: "kc-bar" },
        layouts.map(([name, text, reason]) => h("label", { key: name, title: reason || null },
          h("input", { type: "radio", name: id + "layout", checked: name === layout,
            disabled: isBusy() || reason !== "",
            onchange: () => send("set", { trait: "layout", value: name }) }), " ", text)),
        button("Suggest factors", () => send("suggest"), { disabled: isBusy(),
          title: "Factors that let all models end their epochs together; after a benchmark, factors "
            + "that make their steps take equally long" })),
      muted(about, ...why.map(([name, , reason]) => ` ${name}: ${reason}.`)),
      alert("layout"));
  }

  // Tabs

  function tabs() {
    const go = (tab) => {
      keep({ tab });
      requestAnimationFrame(() => el.querySelector(`#${id}${tab}`).focus());
    };
    const onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) go(TABS[(TABS.indexOf(local.tab) + by + TABS.length) % TABS.length]);
    };
    return [
      h("div", { key: "tabs", role: "tablist", class: "kc-tabs", "aria-label": "what to do" },
        TABS.map((tab) => button(tab, () => keep({ tab }), { key: tab, id: id + tab, role: "tab",
          "aria-selected": String(tab === local.tab), "aria-controls": id + "pane", onkeydown,
          tabindex: tab === local.tab ? "0" : "-1" }))),
      h("div", { key: "pane", id: id + "pane", role: "tabpanel", class: "kc-pane",
          "aria-labelledby": id + local.tab },
        h("div", { key: local.tab }, { Train: train, Benchmark: benchmark, Code: code }[local.tab]())),
    ];
  }

  const stopping = () => live().status === "stopping";
  const overall = (work) => isRunning(work) && h("span", { key: "overall", class: "kc-overall" },
    h("progress", { max: 1, value: live().fraction, "aria-label": `progress of the ${work}` }), " ",
    live().text);
  const said = (work) => !isBusy() && live().work === work ? live().message : "";

  function start() {
    el.querySelector(".kc-scroll")?.scrollTo(0, 0); // to where the progress is
    send("train");
  }

  function train() {
    const isOn = isRunning("train");
    return [
      h("div", { key: "bar", class: "kc-bar" },
        button("Train", start, { class: "kc-primary", disabled: isBusy() }),
        button("Stop training", () => send("stop"), { disabled: !isOn,
          title: "Ends after the steps it is in; once more, it does not wait for validation" }),
        h("label", {}, "history in ", h("input", { type: "text", value: page().output,
          disabled: isBusy(), class: "kc-name",
          onchange: (event) => send("set", { trait: "output", value: event.target.value }) })),
        overall("train"), isOn && stopping() && " stopping…"),
      alert("train"),
      h("div", { key: "said", class: isOn ? "kc-muted" : "" }, isOn ? WHILE : said("train")),
      plot(isOn),
    ];
  }

  function plot(isOn) {
    const { now = {}, earlier = [] } = model.get("curves");
    const hasPoints = Object.values(now).some((metrics) => Object.keys(metrics).length);
    if (!hasPoints) {
      return h("div", { key: "empty", class: isOn ? "kc-empty" : "" },
        isOn ? muted(live().fraction > 0 ? "The curves begin with the end of the first epoch."
          : live().text) : "");
    }
    const metrics = metricsOf(now);
    const metric = metrics.includes(local.metric) ? local.metric : "loss";
    let drawn;
    try {
      drawn = plots(now, earlier, metric);
    } catch (error) {
      drawn = h("div", { key: "failed", class: "kc-alert", role: "alert" },
        `This could not be drawn. ${error}`);
    }
    const check = (text, name) => h("label", { key: name }, h("input", { type: "checkbox",
      checked: local[name], onchange: (event) => keep({ [name]: event.target.checked }) }), " ", text);
    return h("div", { key: "plot" },
      h("div", { key: "bar", class: "kc-bar" },
        h("label", {}, "metric ", h("select", { value: metric,
            onchange: (event) => keep({ metric: event.target.value }) },
          metrics.map((name) => h("option", { key: name, value: name }, name)))),
        check("log scale", "isLog"), check("a plot for each", "isApart"),
        h("label", {}, "smoothing ", h("input", { type: "number", min: 0, max: 0.99, step: 0.1,
          value: local.smoothing, onchange: (event) =>
            keep({ smoothing: Math.min(0.99, Math.max(0, Number(event.target.value) || 0)) }) })),
        button("CSV", () => send("csv"), { title: "Save all values" }),
        button("PNG", () => savePng(el.querySelector(".kc-plots"), `${metric}.png`), {
          title: "Save the picture" })),
      drawn);
  }

  function plots(now, earlier, metric) {
    const curves = curvesOf(now, metric, local.smoothing);
    const before = earlier.flatMap((one) => curvesOf(one, metric, local.smoothing));
    const names = Object.keys(now);
    const isWide = local.width > 700;
    if (local.isApart) {
      const columns = Math.max(1, Math.min(4, names.length, Math.floor(local.width / 240)));
      const width = Math.floor(local.width / columns) - 8;
      return h("div", { key: "plots", class: "kc-plots kc-apart", tabindex: "0", role: "region",
        "aria-label": "plots" }, names.map((name) => h("div", { key: name },
          chart(curves.filter((one) => one.name === name).map((one) => ({ ...one, isThin: false,
            color: one.isVal ? 1 : 0 })), before.filter((one) => one.name === name), metric,
            local.isLog, { width, height: 160, title: name, left: 48 }))));
    }
    const width = Math.min(local.width, 1100) - (isWide ? 190 : 0);
    return h("div", { key: "plots", class: "kc-one" },
      h("div", { class: "kc-plots" },
        chart(curves, before, metric, local.isLog, { width, height: 250 })),
      legend(curves, before, names));
  }

  function legend(curves, before, names) {
    const sample = (stroke, width, isDashed, text) => h("li", { key: text },
      h("svg", { width: 24, height: 8, "aria-hidden": "true" }, h("path", { d: "M0,4L24,4", stroke,
        "stroke-width": width, "stroke-dasharray": isDashed ? "5 4" : null })), " ", text);
    const isMany = names.length > MOST_NAMED;
    const hasVal = curves.some((curve) => curve.isVal);
    const lines = isMany
      ? [sample(COLORS[0], 0.8, false, "each model"), sample(COLORS[0], 2.8, false, `median of ${names.length}${hasVal ? ", training" : ""}`),
        hasVal && sample(COLORS[1], 2.8, true, "median, validation")]
      : [...names.map((name, i) => sample(COLORS[i % COLORS.length], 1.8, false, name)),
        hasVal && sample("currentColor", 1.8, true, "validation")];
    return h("ul", { class: "kc-legend" }, lines.filter(Boolean),
      before.length > 0 && sample("#8a8a8a", 1, false, "earlier trainings"));
  }

  function benchmark() {
    const { result, budget } = page();
    const isOn = isRunning("benchmark");
    const use = (layout, text) => button(text, () => send("use", { value: layout }), {
      key: "use" + text, disabled: isBusy() || result.old });
    const about = isOn
      ? "The models' weights are not yours meanwhile: leave these models alone until it ends."
      : said("benchmark") || "Trains your models in each layout in turn, then restores them.";
    return [
      h("div", { key: "bar", class: "kc-bar" },
        button("Run benchmark", () => send("benchmark"), { class: "kc-primary", disabled: isBusy() }),
        button("Stop benchmark", () => send("stop"), { disabled: !isOn || stopping() }),
        h("label", {}, "seconds ", h("input", { type: "number", min: 1, value: Math.round(budget),
          disabled: isBusy(), onchange: (event) => event.target.value
            && send("set", { trait: "budget_s", value: Number(event.target.value) }) })),
        overall("benchmark")),
      alert("benchmark"),
      h("div", { key: "about", class: isOn || !said("benchmark") ? "kc-muted" : "" }, about),
      result && h("div", { key: "result" },
        result.old && h("p", { key: "old", class: "kc-note" },
          "Measured before the models, data or batch sizes were changed: run it again."),
        h("div", { key: "table", class: "kc-scroll" + (result.old ? " kc-old" : ""), tabindex: "0",
            role: "region", "aria-label": "speed of each layout" },
          h("table", {}, h("thead", {}, h("tr", {}, result.columns.map((name) =>
            h("th", { key: name, scope: "col" }, name)))),
          h("tbody", {}, result.rows.map((row) => h("tr", { key: row[0] }, row.map((text, i) =>
            h(i ? "td" : "th", { key: i, scope: i ? null : "row" }, text))))))),
        result.notes.map((text) => h("p", { key: text }, text)),
        h("div", { key: "use", class: "kc-bar" },
          result.best === "separate" ? null : use(result.best, `Use ${result.best}`),
          result.best_exact !== result.best && result.best_exact !== "separate"
            && use(result.best_exact, `Use ${result.best_exact}, which changes nothing`)),
        result.bars.length > 1 && bars(result.bars, Math.min(local.width, 640))),
    ];
  }

  function code() {
    const area = (label, text) => [
      h("div", { key: "bar" + label, class: "kc-bar" },
        h("label", { for: id + label.length }, label),
        button("Copy", () => navigator.clipboard?.writeText(text), { disabled: !text,
          "aria-label": `Copy ${label}` })),
      // Not `readonly`: JupyterLab takes the focus, and keys, from what cannot be written in.
      h("textarea", { key: label, id: id + label.length, spellcheck: "false",
        rows: text.split("\n").length, value: text || "Choose models, and data for each." })];
    return [muted("This does what Train does."), ...area("Python", page().code),
      ...area("or a cell", page().cell)];
  }

  function drawNow() {
    try {
      patchAll(el.firstChild, [
        ...models(), layout(), ...tabs(),
        h("div", { key: "status", role: "status", class: "kc-hidden" },
          isBusy() ? "" : live().message + Object.entries(live().members).filter(([, one]) => one.note)
            .map(([name, one]) => ` ${name}: ${one.note}.`).join("")),
      ].filter((one) => one != null && one !== false), !isAnswered());
    } catch (error) { // shown, and the next change is drawn again
      el.firstChild.textContent = `This could not be drawn. ${error}`;
    }
  }

  const root = document.createElement("div");
  root.className = "kerascohost";
  root.setAttribute("role", "region");
  root.setAttribute("aria-label", "kerascohost");
  // Keys are the widget's, and not JupyterLab's (which would insert a cell at "b"), but for those
  // with Control or Command, as to save. JupyterLab asks for this attribute after this listener.
  const onKey = (event) =>
    root.toggleAttribute("data-lm-suppress-shortcuts", !event.ctrlKey && !event.metaKey);
  window.addEventListener("keydown", onKey, true);
  el.append(root);
  const events = ["change:page", "change:live", "change:curves"];
  for (const event of events) model.on(event, draw);
  const onMessage = (content) => {
    if (content.csv !== undefined) {
      download("data:text/csv;charset=utf-8," + encodeURIComponent(content.csv), "history.csv");
    }
  };
  model.on("msg:custom", onMessage);
  const resized = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width && width !== local.width) keep({ width });
  });
  resized.observe(root);
  drawNow();
  return () => {
    resized.disconnect();
    window.removeEventListener("keydown", onKey, true);
    for (const event of events) model.off(event, draw);
    model.off("msg:custom", onMessage);
  };
}

export default { render };
