// Uploads: choose or drop files, send each to the API with its progress, show the result in place.
import { megabytes, percent } from "./figures.js";
import { keep, want, wanted } from "./keep.js";
import { look, siteWords } from "./lesion.js";
import { bind, show } from "./overlay.js";
import { checkReadiness } from "./readiness.js";
import { csrfToken, onResume, pause, paused } from "./resume.js";

const AT_ONCE = 2;
const TRIES = 6;
const THUMB = 112;
const WORDS = JSON.parse(document.getElementById("words").textContent);
const PERMANENT = new Set([
  "image_empty", "image_too_large", "image_too_small", "unsupported_media_type", "image_undecodable", "image_invalid",
]);
const ENDED = new Set(["unauthenticated", "forbidden"]); // no session, or a newer one than this page's
const SEE_DETAIL = new Set(["image_too_large", "image_too_small", "unsupported_media_type"]);

const form = document.getElementById("upload");
const input = document.getElementById("files");
const items = document.getElementById("items");
const template = document.getElementById("item");
const camera = document.getElementById("camera");
const keeping = document.getElementById("keep");
const fields = { "X-Lesion": "lesion", "X-Body-Site": "body_site", "X-Note": "note" };
const progress = document.getElementById("progress");
const maxBytes = Number(form.dataset.maxBytes);
const waiting = [];
let drawn = Promise.resolve(); // previews come one after the other: decoded photographs are large
let running = 0, total = 0, finished = 0;

input.addEventListener("change", () => {
  add(input.files);
  input.value = "";
});
camera.addEventListener("change", () => {
  add(camera.files);
  camera.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length === 0) return; // text into a field
  event.preventDefault();
  add(event.clipboardData.files);
});
keeping.checked = wanted();
keeping.addEventListener("change", async () => {
  const done = await want(keeping.checked);
  document.getElementById("keep-status").textContent = done ? "" : say("not_kept");
  keeping.checked = wanted();
});
onResume(() => {
  keeping.checked = wanted(); // whoever logs out or comes to the login page forgets what was kept
  next();
});
form.addEventListener("submit", (event) => event.preventDefault());
for (const name of ["dragover", "dragleave", "drop"]) {
  // On the whole page: a file dropped beside the field must not make the browser leave for it.
  document.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer) add(event.dataTransfer.files);
  });
}
window.addEventListener("beforeunload", (event) => {
  if (finished < total) event.preventDefault();
});

function add(files) {
  const alone = files.length === 1;
  for (const file of files) {
    total += 1;
    const item = new Item(file, alone);
    if (file.size > maxBytes) {
      item.fail("image_too_large", say("too_many_bytes", { size: megabytes(file.size), most: megabytes(maxBytes) }));
    } else if (file.size === 0) {
      item.fail("image_empty");
    } else {
      waiting.push(item);
    }
  }
  next();
}

function next() {
  while (!paused() && running < AT_ONCE && waiting.length > 0) {
    running += 1;
    waiting.shift().send().finally(() => {
      running -= 1;
      next();
    });
  }
  progress.textContent = total > 0 ? say("progress", { finished, total }) : "";
}

/** Words of the page with {names} filled in. */
function say(key, values = {}) {
  return (WORDS[key] ?? WORDS.failed).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Resolves after so many seconds, or at once when `signal` is aborted. */
function wait(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** What an item says of the lesion that its image belongs to. */
function lesionWords(name, site) {
  return name ? [say("lesion", { name }), site && siteWords(site)].filter(Boolean).join(", ") : "";
}

class Item {
  constructor(file, open) {
    this.file = file;
    this.open = open;
    this.over = false;
    this.stop = new AbortController();
    this.context = Object.fromEntries(
      Object.entries(fields).map(([header, id]) => [header, encodeURIComponent(document.getElementById(id).value)]));
    this.element = template.content.firstElementChild.cloneNode(true);
    this.status = this.element.querySelector(".item-status");
    this.bar = this.element.querySelector("progress");
    this.cancel = this.element.querySelector(".item-cancel");
    this.element.querySelector(".item-name").textContent = file.name;
    this.cancel.setAttribute("aria-label", say("cancel_name", { name: file.name }));
    this.retry = this.element.querySelector(".item-retry");
    this.retry.setAttribute("aria-label", say("retry_name", { name: file.name }));
    this.retry.addEventListener("click", () => this.again());
    this.cancel.addEventListener("click", () => this.abort());
    this.status.textContent = say("waiting");
    this.lesion = this.element.querySelector(".item-lesion");
    this.lesion.textContent = lesionWords(...["lesion", "body_site"].map((id) => document.getElementById(id).value.trim()));
    items.prepend(this.element);
    drawn = drawn.then(() => this.drawThumb());
  }

  async drawThumb() {
    try {
      const picture = await createImageBitmap(this.file, { imageOrientation: "from-image" });
      const side = Math.min(picture.width, picture.height);
      this.element.querySelector(".thumb").getContext("2d").drawImage(
        picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, THUMB, THUMB);
      picture.close();
    } catch {
      // No preview for what this browser cannot decode; the server decides whether it is an image.
    }
  }

  /** Send until there is an answer; a repeat is free because the server knows the bytes. */
  async send() {
    const { signal } = this.stop = new AbortController(); // ends this run, whatever it waits for, and no later one
    for (let attempt = 1; ; attempt++) {
      this.status.textContent = say("uploading");
      const answer = await this.post(signal);
      if (signal.aborted) return;
      if (answer.ok) {
        this.succeed(answer.body, answer.repeat);
        return;
      }
      this.bar.value = 0;
      if (ENDED.has(answer.code)) {
        this.status.textContent = say("paused");
        waiting.unshift(this);
        pause();
        return;
      }
      const passing = answer.retryAfter > 0 || answer.code === "network";
      if (!passing || attempt === TRIES) {
        this.fail(answer.code, answer.detail);
        return;
      }
      checkReadiness();
      const seconds = answer.retryAfter || 2 * attempt;
      this.status.textContent = `${say(answer.code)} ${say("again", { seconds })}`;
      await wait(seconds, signal);
      if (signal.aborted) return;
    }
  }

  post(signal) {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest();
      signal.addEventListener("abort", () => request.abort());
      request.open("POST", "/v1/predictions");
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.setRequestHeader("X-CSRF-Token", csrfToken());
      request.setRequestHeader("X-Filename", encodeURIComponent(this.file.name));
      for (const [header, value] of Object.entries(this.context)) request.setRequestHeader(header, value);
      request.timeout = 180000;
      request.upload.onprogress = (event) => {
        if (event.lengthComputable) this.bar.value = 100 * event.loaded / event.total;
      };
      request.upload.onload = () => {
        this.status.textContent = say("analysing");
        this.bar.removeAttribute("value");
      };
      request.onload = () => {
        let body = {};
        try {
          body = JSON.parse(request.responseText);
        } catch {
          // A proxy's page in place of our answer; the status is all there is.
        }
        resolve({
          repeat: request.status === 200,
          ok: (request.status === 200 || request.status === 201) && Boolean(body.id),
          body,
          code: body.code ?? "network",
          detail: body.detail ?? "",
          retryAfter: Number(request.getResponseHeader("Retry-After")) || 0,
        });
      };
      request.onerror = request.ontimeout = request.onabort = () => {
        resolve({ ok: false, code: "network", detail: "", retryAfter: 0 });
      };
      request.send(this.file);
    });
  }

  abort() {
    const place = waiting.indexOf(this);
    if (place >= 0) waiting.splice(place, 1);
    this.finish(say("cancelled"));
    this.stop.abort();
    this.retry.hidden = false;
  }

  fail(code, detail = "") {
    this.element.classList.add("failed");
    this.finish(SEE_DETAIL.has(code) || !WORDS[code] ? `${say(code)} ${detail}` : say(code));
    this.retry.hidden = PERMANENT.has(code);
  }

  /** Once more from the beginning, after a failure or a cancellation. */
  again() {
    finished -= 1;
    this.over = false;
    this.element.classList.remove("failed");
    this.retry.hidden = true;
    this.bar.hidden = this.cancel.hidden = false;
    this.bar.value = 0;
    this.status.textContent = say("waiting");
    waiting.push(this);
    next();
  }

  succeed(result, repeat) {
    const { refer, threshold } = result.decision;
    const { melanoma } = result.probabilities;
    const tag = document.createElement("span");
    const kind = result.quality.abstained ? "abstained" : refer ? "refer" : "below";
    tag.className = `tag ${kind}`;
    tag.textContent = say(kind);
    this.finish("");
    const words = kind === "abstained"
      ? say("unlike")
      : say("figures", { melanoma: percent(melanoma, threshold), threshold: percent(threshold, melanoma) });
    this.status.append(tag, `${words} `);
    const link = document.createElement("a");
    link.href = `/predictions/${result.id}`;
    link.textContent = say("open");
    this.status.append(link, repeat ? ` ${say("repeat")}` : "");
    this.lesion.textContent = lesionWords(result.context?.lesion, result.context?.body_site);
    if (result.context?.lesion) look(); // it exists from now on
    if (keeping.checked) keep(result.image.sha256, this.file);
    const details = this.element.querySelector("details");
    details.hidden = false;
    details.addEventListener("toggle", () => this.showResult(result.id), { once: true });
    details.open = this.open;
  }

  async showResult(id) {
    const body = this.element.querySelector(".item-body");
    try {
      const response = await fetch(`/predictions/${id}/fragment`);
      if (!response.ok) throw new Error(response.statusText);
      body.innerHTML = await response.text();
    } catch {
      body.textContent = say("not_shown");
      return;
    }
    const section = body.querySelector(".overlay");
    bind(section);
    await show(section, this.file);
  }

  finish(text) {
    if (!this.over) finished += 1;
    this.over = true;
    this.status.textContent = text;
    this.bar.hidden = true;
    this.cancel.hidden = true;
    next();
  }
}
