import "./confirm.js";

// Two to four results can be compared.
const LEAST = 2, MOST = 4;
const form = document.getElementById("compare");

if (form) {
  const boxes = document.querySelectorAll("input[form=compare]");
  const update = () => {
    const chosen = [...boxes].filter((box) => box.checked).length;
    form.querySelector("button").disabled = chosen < LEAST;
    for (const box of boxes) box.disabled = !box.checked && chosen >= MOST;
  };
  document.addEventListener("change", update);
  update();
}
