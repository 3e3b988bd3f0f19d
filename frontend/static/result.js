import { bind } from "./overlay.js";
import "./confirm.js";

document.querySelectorAll(".overlay").forEach(bind);
document.querySelectorAll("button.print").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => window.print());
});
