import { bind } from "./overlay.js";
import "./confirm.js";

document.querySelectorAll(".overlay").forEach(bind);
