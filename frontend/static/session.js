// On every page of somebody who is logged in: whoever logs out leaves no image behind in this browser.
import { forget, wanted } from "./keep.js";

const form = document.querySelector('form[action="/logout"]');
form?.addEventListener("submit", async (event) => {
  if (!wanted()) return;
  event.preventDefault();
  await forget();
  form.submit();
});
