// Plots as SVG: curves of metrics over epochs, and bars of speed-ups.

// Okabe and Ito, as in results/plotting.py; the last one is the colour of text.
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor"];
const MOST_NAMED = 12; // more curves cannot be told apart: they are thin and alike, with a median

// Every metric of some curves, without `val_`, the loss first.
function metricsOf(members) {
  const names = new Set(["loss"]);
  for (const metrics of Object.values(members)) {
    for (const name of Object.keys(metrics)) names.add(name.replace(/^val_/, ""));
  }
  return [...names];
}

// The curves of one metric: member, whether of validation, points, and what they look like.
function curvesOf(members, metric, smoothing) {
  const names = Object.keys(members);
  const found = [];
  names.forEach((name, i) => {
    for (const [key, isVal] of [[metric, false], ["val_" + metric, true]]) {
      const points = members[name][key];
      if (points?.length) {
        found.push({ name, isVal, points: smooth(points, smoothing), color: i % COLORS.length,
          isThin: names.length > MOST_NAMED });
      }
    }
  });
  return found;
}

// An exponential moving average, corrected at its beginning; `share` of the past counts.
function smooth(points, share) {
  if (!share) return points;
  let [sum, weight] = [0, 0];
  return points.map(([epoch, value]) => {
    if (value === null) return [epoch, value];
    [sum, weight] = [share * sum + (1 - share) * value, share * weight + 1 - share];
    return [epoch, sum / weight];
  });
}

function medians(curves) {
  const byEpoch = new Map();
  for (const { points } of curves) {
    for (const [epoch, value] of points) {
      if (value !== null) byEpoch.set(epoch, [...(byEpoch.get(epoch) || []), value]);
    }
  }
  const middle = (all) => {
    const sorted = all.sort((a, b) => a - b);
    return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  };
  return [...byEpoch].sort((a, b) => a[0] - b[0]).map(([epoch, all]) => [epoch, middle(all)]);
}

function ticksOf(low, high, count, isWhole = false) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * ([1, 2, 5].find((one) => one * power >= rough) || 10);
  if (isWhole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    ticks.push(i * step);
  }
  return ticks;
}

function logTicksOf(low, high) {
  const ticks = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    const within = high / low > 300 ? [1] : [1, 2, 5];
    for (const one of within) {
      const tick = one * 10 ** p;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

const short = (value) => String(Number(value.toPrecision(4)));

// The plot of some curves.
//   size: {width, height, title}; earlier: curves of trainings before, drawn in grey.
function chart(curves, earlier, metric, isLog, { width, height, title, left = 58 }) {
  const top = title ? 22 : 8, right = 12, bottom = 34;
  const usable = (value) => value !== null && (!isLog || value > 0);
  const points = [...curves, ...earlier].flatMap((curve) => curve.points);
  const values = points.map((point) => point[1]).filter(usable);
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = isLog ? [0.1, 1] : [0, 1];
  if (low === high) [low, high] = isLog ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const last = Math.max(2, ...points.map((point) => point[0]));
  const x = (epoch) => left + ((epoch - 1) / (last - 1)) * (width - left - right);
  const scale = isLog ? Math.log10 : (value) => value;
  const [from, to] = [scale(low), scale(high)];
  const y = (value) => top + 4 + (1 - (scale(value) - from) / (to - from)) * (height - top - bottom - 8);

  const line = (curve, style, key) => {
    let d = "", isOpen = false;
    for (const [epoch, value] of curve.points) {
      if (usable(value)) d += `${isOpen ? "L" : "M"}${x(epoch).toFixed(1)},${y(value).toFixed(1)}`;
      isOpen = usable(value);
    }
    const dash = curve.isVal ? { "stroke-dasharray": "5 4" } : {};
    return h("path", { key, d, fill: "none", "stroke-linejoin": "round", ...dash, ...style });
  };
  const drawn = curves.map((curve, i) =>
    line(curve, {
      stroke: COLORS[curve.isThin ? (curve.isVal ? 1 : 0) : curve.color],
      "stroke-width": curve.isThin ? 0.8 : 1.8, "stroke-opacity": curve.isThin ? 0.4 : 1 },
      `${curve.name}${curve.isVal}${i}`));
  const single = curves.filter((curve) => curve.points.length === 1 && usable(curve.points[0][1]));
  const dots = single.map((curve, i) => {
    const [epoch, value] = curve.points[0];
    return h("circle", { key: "dot" + i, cx: x(epoch), cy: y(value), r: 3,
      fill: COLORS[curve.isThin ? 0 : curve.color] });
  });
  const thin = curves.filter((curve) => curve.isThin);
  const middles = [false, true].flatMap((isVal) => {
    const own = thin.filter((curve) => curve.isVal === isVal);
    if (!own.length) return [];
    const style = { stroke: COLORS[isVal ? 1 : 0], "stroke-width": 2.8 };
    return [line({ points: medians(own), isVal }, style, "median" + isVal)];
  });
  const grey = earlier.map((curve, i) =>
    line(curve, { stroke: "#8a8a8a", "stroke-width": 1, "stroke-opacity": 0.6 }, "earlier" + i));
  const text = { fill: "currentColor", "font-size": 11, "font-family": "sans-serif" };
  const xs = ticksOf(1, last, Math.max(2, Math.floor(width / 90)), true);
  const ys = isLog ? logTicksOf(low, high) : ticksOf(low, high, Math.max(2, Math.floor(height / 36)));
  const base = height - bottom;
  return h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": describe(curves, metric, title) },
    title && h("text", { key: "title", x: left, y: 14, ...text, "font-weight": 600 }, title),
    ys.map((tick) => h("line", { key: "grid" + tick, x1: left, x2: width - right, y1: y(tick),
      y2: y(tick), stroke: "currentColor", "stroke-opacity": 0.15 })),
    ys.map((tick) => h("text", { key: "y" + tick, x: left - 6, y: y(tick) + 4, ...text,
      "text-anchor": "end" }, short(tick))),
    xs.map((tick) => h("text", { key: "x" + tick, x: x(tick), y: base + 15, ...text,
      "text-anchor": "middle" }, String(tick))),
    h("line", { key: "axis", x1: left, x2: width - right, y1: base, y2: base,
      stroke: "currentColor", "stroke-opacity": 0.6 }),
    h("text", { key: "xlabel", x: (left + width - right) / 2, y: height - 4, ...text,
      "text-anchor": "middle" }, "epoch"),
    h("text", { key: "ylabel", transform: `translate(12,${(top + base) / 2}) rotate(-90)`, ...text,
      "text-anchor": "middle" }, metric),
    grey, drawn, dots, middles);
}

// What a plot shows, in words with its values.
function describe(curves, metric, title) {
  const finite = curves.filter((curve) => curve.points.some((point) => point[1] !== null));
  if (!finite.length) return `${metric}: no values yet`;
  const lastOf = (curve) => curve.points.filter((point) => point[1] !== null).at(-1);
  if (finite.length > MOST_NAMED) {
    const values = finite.filter((curve) => !curve.isVal).map((curve) => lastOf(curve)[1]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return `${metric} of ${values.length} models: from ${short(low)} to ${short(high)} at the end`;
  }
  const texts = finite.map((curve) => {
    const [epoch, value] = lastOf(curve);
    return `${curve.name}${curve.isVal ? " validation" : ""} ${short(value)} after epoch ${epoch}`;
  });
  return `${metric}: ${texts.join(", ")}`;
}

// Speed-ups of layouts, with their intervals.
function bars(found, width) {
  const rows = found.map((row) => row.map((value) => value ?? Infinity)); // an interval's open end
  const left = 84, right = 24, step = 26, height = rows.length * step + 34;
  const most = Math.max(1.2, ...rows.map((row) => Math.min(row[3], 1.5 * row[1]))) * 1.05;
  const x = (value) => left + (Math.min(value, most) / most) * (width - left - right);
  const text = { fill: "currentColor", "font-size": 11, "font-family": "sans-serif" };
  const said = rows.map(([name, speedup]) => `${name} ${short(speedup)} times`).join(", ");
  return h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `speed-up over separate training: ${said}` },
    rows.map(([name, speedup, low, high, isExact], i) => {
      const middle = 4 + i * step + step / 2 - 3;
      const color = isExact ? COLORS[0] : COLORS[4];
      return h("g", { key: name },
        h("text", { x: left - 8, y: middle + 4, ...text, "text-anchor": "end" }, name),
        h("rect", { x: left, y: middle - 8, height: 16, width: Math.max(1, x(speedup) - left),
          fill: color, "fill-opacity": high > 1.5 * speedup ? 0.35 : 1 }),
        h("line", { x1: x(low), x2: x(high), y1: middle, y2: middle, stroke: "currentColor",
          "stroke-width": 1.5 }));
    }),
    h("line", { key: "one", x1: x(1), x2: x(1), y1: 0, y2: height - 30, stroke: "currentColor",
      "stroke-dasharray": "3 3" }),
    ticksOf(0, most, Math.max(2, width / 110)).map((tick) => h("text", { key: "x" + tick,
      x: x(tick), y: height - 16, ...text, "text-anchor": "middle" }, `${short(tick)}×`)),
    h("text", { key: "label", x: (left + width) / 2, y: height - 2, ...text,
      "text-anchor": "middle" }, "speed-up over separate training (orange: larger batches)"));
}

// Saves the plots in an element as one PNG, on white and twice as large as they are shown.
async function savePng(element, name) {
  const plots = [...element.querySelectorAll("svg")];
  const box = element.getBoundingClientRect();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * element.scrollWidth, 2 * element.scrollHeight];
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const plot of plots) {
    const copy = plot.cloneNode(true);
    copy.setAttribute("xmlns", SVG);
    copy.setAttribute("color", "black");
    const picture = new Image();
    picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(copy.outerHTML);
    await picture.decode();
    const at = plot.getBoundingClientRect();
    const [x, y] = [at.x - box.x + element.scrollLeft, at.y - box.y + element.scrollTop];
    context.drawImage(picture, 2 * x, 2 * y, 2 * at.width, 2 * at.height);
  }
  download(canvas.toDataURL("image/png"), name);
}

function download(address, name) {
  const link = document.createElement("a");
  [link.href, link.download] = [address, name];
  link.click();
}
