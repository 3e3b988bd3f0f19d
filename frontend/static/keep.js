// Images that the user wants kept in this very browser, by the SHA-256 of their bytes. Nothing here is ever sent.
const STORE = "images";
const WANTED = "derm-keep-images";

function database() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("dermserve", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function act(mode, work) {
  const open = await database();
  return new Promise((resolve, reject) => {
    const transaction = open.transaction(STORE, mode);
    const asked = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => {
      open.close();
      resolve(asked.result);
    };
    transaction.onabort = transaction.onerror = () => {
      open.close();
      reject(transaction.error);
    };
  });
}

/** Whether the user asked for it; a browser may forbid pages even to look. */
export function wanted() {
  try {
    return localStorage.getItem(WANTED) === "yes";
  } catch {
    return false;
  }
}

/** Change that, and forget everything where it is no longer wanted; false where this browser keeps nothing. */
export async function want(yes) {
  if (!yes) {
    await forget();
    return true;
  }
  try {
    await act("readonly", (images) => images.count());
    localStorage.setItem(WANTED, "yes");
    return true;
  } catch {
    return false;
  }
}

export async function keep(sha256, file) {
  if (!wanted()) return;
  try {
    await act("readwrite", (images) => images.put(file, sha256));
  } catch {
    // No room, or a private window: the result does not depend on it.
  }
}

/** The file with these bytes, or null. */
export async function kept(sha256) {
  if (!wanted()) return null;
  try {
    return (await act("readonly", (images) => images.get(sha256))) ?? null;
  } catch {
    return null;
  }
}

export async function forget() {
  try {
    localStorage.removeItem(WANTED);
  } catch {
    // Nothing was wanted in such a browser.
  }
  try {
    await act("readwrite", (images) => images.clear());
  } catch {
    // Nothing could be kept in such a browser either.
  }
}
