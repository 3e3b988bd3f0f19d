// Beside the field for a lesion's name: which lesion it names, and whether the chosen body site is that one's.
const PAUSE_MS = 250;
const name = document.getElementById("lesion");
const site = document.getElementById("body_site");
const offered = document.getElementById("lesions");
const known = document.getElementById("lesion-known");
const warning = document.getElementById("site-warning");
let asked = 0, timer = 0, found = null;

/** A body site in the words of the page. */
export function siteWords(value) {
  return [...site.options].find((one) => one.value === value)?.text ?? value;
}

/** Say what the name joins as it now stands. */
export async function look() {
  clearTimeout(timer);
  const number = ++asked;
  let answer = null;
  try {
    const response = await fetch("/lesions/named", {
      headers: { Accept: "application/json", "X-Lesion": encodeURIComponent(name.value) }, cache: "no-store",
    });
    if (response.ok) answer = await response.json();
  } catch {
    // Said below.
  }
  if (number !== asked) return; // somebody typed on meanwhile
  found = answer?.site ?? null;
  const same = name.value.trim() === known.dataset.own;
  known.textContent = !name.value.trim() || same ? "" : answer?.words ?? known.dataset.unchecked;
  known.classList.toggle("joins", Boolean(answer?.known) && !same);
  if (answer) offered.replaceChildren(...answer.like.map((one) => new Option("", one)));
  compare();
}

function compare() {
  const differs = found !== null && site.value !== "" && site.value !== found;
  warning.textContent = differs
    ? warning.dataset.differs.replace("{theirs}", () => siteWords(found)).replace("{chosen}", () => siteWords(site.value))
    : "";
}

name.addEventListener("input", () => {
  clearTimeout(timer);
  asked += 1;
  found = null;
  known.textContent = warning.textContent = ""; // what stood there was said of another name
  timer = setTimeout(look, PAUSE_MS);
});
site.addEventListener("change", compare);
if (name.value) {
  name.closest("details").open ||= !known.dataset.own; // what the browser filled in again is to be seen
  look();
}
