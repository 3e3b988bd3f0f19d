// Figures as the pages write them (see `i18n.py`).
const DIGITS_MAX = 8;

/**
 * A share (0…1), never rounded to a certainty that the model does not have; with as many digits as tell it from
 * `beside`, the threshold or share that it is compared with.
 */
export function percent(share, beside = share) {
  for (let digits = 1; digits < DIGITS_MAX; digits++) {
    const shown = written(share, digits);
    if (share === beside || shown !== written(beside, digits)) return shown;
  }
  return written(share, DIGITS_MAX);
}

function written(share, digits) {
  const format = new Intl.NumberFormat(document.documentElement.lang,
    { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const shown = (value) => `${format.format(100 * value)}\u00a0%`;
  const least = 10 ** -(2 + digits);
  if (share > 0 && share < least) return `<\u00a0${shown(least)}`;
  if (share > 1 - least && share < 1) return `>\u00a0${shown(1 - least)}`;
  return shown(share);
}

export function megabytes(bytes) {
  return `${(bytes / 1048576).toFixed(1)} MB`;
}
