// The mailed token stands behind the #, which browsers send to nobody; from here it goes into the form.
const token = document.getElementById("token");
if (location.hash.length > 1) {
  token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}
