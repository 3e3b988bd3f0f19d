// On pages for strangers: whose session is over, or whose account is deleted, leaves no image behind in this browser.
import { forget, wanted } from "./keep.js";

if (wanted()) forget();
