// The page at /: each image goes to /predict; results and totals stay in this tab.
"use strict";

const MAX_CONCURRENT = 4; // requests in progress; the server batches them
const TOP = 5; // classes listed per task
const MIN_PROBABILITY = 0.0005; // smaller ones would read 0.0 %
const MAX_IMAGES = 200; // images kept on the page; totals go on
const MAX_ROWS = 15; // classes in the totals of a task
const Z = 1.959964; // 97.5 % quantile of the normal distribution

const byId = (id) => document.getElementById(id);
const percent = (fraction, digits = 1) => `${(100 * fraction).toFixed(digits)} %`;
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const totals = new Map(); // task -> Map(label -> number of images)
const queue = []; // files that wait for their request
let submitted = 0, predicted = 0, failed = 0, active = 0;
let session = 0; // changes with Clear: late responses of an earlier session are dropped

function create(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function headerCell(text, scope) {
  return Object.assign(create("th", text), { scope });
}

function tableOf(caption, columns, rows) {
  const table = create("table"), head = create("thead"), body = create("tbody"), row = create("tr");
  row.append(...columns.map((name) => headerCell(name, "col")));
  head.append(row);
  body.append(...rows);
  table.append(create("caption", caption), head, body);
  return table;
}

function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// ---- the model

async function showModel() {
  const token = sessionStorage.getItem("token");
  let about;
  try {
    const response = await fetch("/about", { headers: authorization(token) });
    if (response.status === 401) return showLogin(token);
    about = await response.json();
    if (!response.ok) throw new Error(about.error);
  } catch (error) {
    byId("lead").textContent = `The server does not respond: ${error.message}`;
    return;
  }
  byId("login").hidden = true;
  document.title = `${about.name} · taskgraft`;
  byId("name").textContent = about.name;
  const tasks = about.tasks.map((task) => `${task.name} (${task.classes.length} classes)`);
  byId("lead").textContent = `${about.architecture}, which predicts ${tasks.join(" and ")} in one pass.`;
  showAccuracy(about);
  showLineage(about);
  byId("notes").replaceChildren(...about.notes.map((note) => create("li", note)));
  byId("model").hidden = false;
}

// a late response to an old token must not remove a new one
function showLogin(rejected) {
  if (sessionStorage.getItem("token") !== rejected) return;
  sessionStorage.removeItem("token");
  byId("lead").textContent = "Enter the token that the server was started with.";
  byId("login").hidden = false;
  byId("token").focus();
}

function withInterval(value) {
  return value ? `${percent(value.mean)} (${percent(value.low)} to ${percent(value.high)})` : "–";
}

function showAccuracy(about) {
  const rows = about.tasks.map((task) => {
    const result = about.results.find((entry) => entry.task === task.name) || {};
    const forgetting = result.forgetting ? percent(result.forgetting.mean) : result.new ? "new" : "–";
    const row = create("tr");
    row.append(headerCell(task.name, "row"), create("td", task.classes.length));
    row.append(create("td", withInterval(result.before)), create("td", withInterval(result.after)));
    row.append(create("td", forgetting));
    return row;
  });
  const table = tableOf("Accuracy, with 95 % intervals", ["task", "classes", "before", "after", "forgetting"], rows);
  byId("accuracy").replaceChildren(...table.childNodes);
}

function showLineage(about) {
  const steps = about.lineage.map((step) => {
    const scores = Object.entries(step.accuracy).map(([task, value]) => `${task} ${percent(value)}`);
    return create("li", `learned ${step.task} with ${step.method}: ${scores.join(", ")}`);
  });
  const [first] = about.lineage;
  if (first) {
    const tasks = first.parent_tasks.join(", ");
    steps.unshift(create("li", `${first.parent} (${first.architecture || "unknown architecture"}): ${tasks}`));
  } else {
    steps.push(create("li", "Original model; no task has been added yet."));
  }
  byId("lineage").replaceChildren(...steps);
}

// ---- predictions

function addFiles(files) {
  const images = [...files].filter((file) => file.size > 0);
  if (!images.length) return;
  submitted += images.length;
  queue.push(...images);
  byId("results").hidden = false;
  showStatus();
  startRequests();
}

function startRequests() {
  while (active < MAX_CONCURRENT && queue.length) {
    active += 1;
    predict(queue.shift(), session).finally(() => {
      active -= 1;
      showStatus();
      startRequests();
    });
  }
}

async function predict(file, startedIn) {
  const entry = addEntry(file);
  const article = entry.querySelector("article");
  const start = performance.now();
  try {
    const response = await post(file);
    if (startedIn !== session) return;
    predicted += 1;
    showResult(article, response.images[0].tasks, response.seconds, performance.now() - start);
    addToTotals(response.images[0].tasks);
  } catch (error) {
    if (startedIn !== session) return;
    failed += 1;
    article.append(create("p", error.message, "error"));
  }
  entry.removeAttribute("aria-busy");
}

async function post(file) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const response = await fetch(`/predict?top=${TOP}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream", ...authorization(token) },
    });
    if (response.status === 429) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    const body = await response.json();
    if (response.status === 401) showLogin(token);
    if (!response.ok) throw new Error(body.error);
    return body;
  }
}

function addEntry(file) {
  const entry = create("li", undefined, "image");
  entry.setAttribute("aria-busy", "true");
  const image = create("img");
  image.alt = "";
  image.addEventListener("error", () => image.classList.add("broken"));
  image.src = URL.createObjectURL(file);
  const article = create("article"), header = create("header");
  header.append(create("h3", file.name || "pasted image"));
  article.append(header);
  entry.append(image, article);
  byId("images").prepend(entry);
  while (byId("images").children.length > MAX_IMAGES) removeEntry(byId("images").lastElementChild);
  return entry;
}

function removeEntry(entry) {
  URL.revokeObjectURL(entry.querySelector("img").src);
  entry.remove();
}

function showResult(article, tasks, serverSeconds, milliseconds) {
  const time = `${(1000 * serverSeconds).toFixed(0)} ms on the server, ${milliseconds.toFixed(0)} ms in total`;
  article.querySelector("header").append(create("span", time));
  const list = create("div", undefined, "tasks");
  for (const [name, task] of Object.entries(tasks)) {
    const block = create("section", undefined, "task");
    block.setAttribute("aria-label", name);
    const label = createBreakable("p", task.label ?? "none of this task", "label");
    block.append(create("h4", name), label, probabilityBars(task.top));
    list.append(block);
  }
  article.append(list);
}

function probabilityBars(top) {
  const list = create("ul", undefined, "bars");
  for (const { label, probability } of top.filter((entry, rank) => rank === 0 || entry.probability >= MIN_PROBABILITY)) {
    const row = create("li");
    row.style.setProperty("--fraction", probability);
    row.append(createBreakable("span", label), create("span", percent(probability)));
    list.append(row);
  }
  return list;
}

// class names are often one long word; they may break after an underscore
function createBreakable(tag, text, className) {
  const element = create(tag, undefined, className);
  const parts = text.split(/(?<=_)/);
  element.append(...parts.flatMap((part, index) => (index ? [create("wbr"), part] : [part])));
  return element;
}

// ---- totals

function addToTotals(tasks) {
  for (const [name, task] of Object.entries(tasks)) {
    if (!totals.has(name)) totals.set(name, new Map());
    const label = task.label ?? "(none of this task)";
    totals.get(name).set(label, (totals.get(name).get(label) || 0) + 1);
  }
  byId("totals").hidden = false;
  byId("totals-note").textContent = `Predicted classes, ${plural(predicted, "image")}`;
  byId("tables").replaceChildren(...[...totals].map(([task, counts]) => totalsTable(task, counts)));
}

// Wilson's interval for a proportion, which stays within 0 and 1 even for few images
function wilsonInterval(hits, total) {
  const mean = hits / total, square = Z * Z / total;
  const center = (mean + square / 2) / (1 + square);
  const half = (Z / (1 + square)) * Math.sqrt((mean * (1 - mean)) / total + square / (4 * total));
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

function totalsTable(task, counts) {
  const ordered = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const rows = ordered.slice(0, MAX_ROWS).map(([label, hits]) => {
    const [low, high] = wilsonInterval(hits, predicted);
    const row = create("tr"), cell = Object.assign(createBreakable("th", label), { scope: "row" });
    cell.style.setProperty("--fraction", hits / predicted);
    row.append(cell, create("td", hits), create("td", percent(hits / predicted, 0)));
    row.append(create("td", `${(100 * low).toFixed(0)} to ${percent(high, 0)}`, "interval"));
    return row;
  });
  if (ordered.length > MAX_ROWS) {
    const rest = ordered.slice(MAX_ROWS).reduce((sum, [, hits]) => sum + hits, 0);
    const row = create("tr");
    row.append(headerCell(`${ordered.length - MAX_ROWS} more classes`, "row"));
    row.append(create("td", rest), create("td", percent(rest / predicted, 0)), create("td"));
    rows.push(row);
  }
  const table = tableOf(task, ["class", "images", "fraction", "95 % interval"], rows);
  table.className = "counts";
  return table;
}

function showStatus() {
  const parts = [`${predicted} of ${plural(submitted, "image")} done`];
  if (failed) parts.push(`${failed} could not be used`);
  if (submitted) byId("status").textContent = `${parts.join(", ")}.`;
}

function clearAll() {
  session += 1;
  queue.length = 0;
  totals.clear();
  submitted = predicted = failed = 0;
  [...byId("images").children].forEach(removeEntry);
  byId("results").hidden = byId("totals").hidden = true;
  byId("status").textContent = "Cleared.";
  byId("files").focus();
}

// ---- input: choose, drop, paste

byId("files").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
let dragDepth = 0; // dragenter and dragleave also come from elements inside
function trackDrag(change) {
  dragDepth = Math.max(0, dragDepth + change);
  byId("drop").classList.toggle("over", dragDepth > 0);
}
addEventListener("dragenter", () => trackDrag(1));
addEventListener("dragleave", () => trackDrag(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  trackDrag(-dragDepth);
  addFiles(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFiles(event.clipboardData.files);
});
byId("clear").addEventListener("click", clearAll);
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value);
  byId("token").value = "";
  showModel();
});
showModel();
