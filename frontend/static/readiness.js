// Shows a banner while the server is not ready, and takes it away when it is again.
const QUICK_MS = 3000, SLOW_MS = 15000;
const banner = document.getElementById("not-ready");
let timer = 0;

async function isReady() {
  try {
    return (await fetch("/readyz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** Look now; soon again while it is not ready, later again while it is. */
export async function checkReadiness() {
  clearTimeout(timer);
  const ready = document.hidden || await isReady();
  banner.hidden = ready;
  timer = setTimeout(checkReadiness, ready ? SLOW_MS : QUICK_MS);
}

document.addEventListener("visibilitychange", checkReadiness);
checkReadiness();
