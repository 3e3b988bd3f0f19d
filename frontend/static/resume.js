// When the session ends, uploads wait on their page until the same account is logged in again, in another tab.
const form = document.getElementById("upload");
const banner = document.getElementById("paused");
const status = banner.querySelector(".paused-status");
const button = banner.querySelector("button");
let csrf = form.dataset.csrf;

export const paused = () => !banner.hidden;
export const csrfToken = () => csrf;

export function pause() {
  banner.hidden = false;
}

/** Call `go` when the user goes on and the session is one of the account that this page was made for. */
export function onResume(go) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    const words = await refusal();
    button.disabled = false;
    status.textContent = words;
    banner.hidden = words === "";
    if (words === "") go();
  });
}

/** Take the token of the session that this browser has now; returns why not, or nothing. */
async function refusal() {
  let now;
  try {
    const response = await fetch("/upload", { headers: { Accept: "text/html" }, cache: "no-store" });
    if (response.status >= 500) return banner.dataset.network;
    now = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("upload")?.dataset;
  } catch {
    return banner.dataset.network;
  }
  if (!now) return banner.dataset.still;
  if (now.account !== form.dataset.account) return banner.dataset.other;
  csrf = now.csrf;
  return "";
}
