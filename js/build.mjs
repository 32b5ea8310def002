// One step from the TypeScript sources to what the wheel ships: the widget, its big part, and the JupyterLab extension.
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const room = join(here, "..", "jupyter_agentwatch");
const extension = join(room, "labextension");
const { version } = JSON.parse(await readFile(join(here, "package.json"), "utf8"));

async function bundle(entry, options = {}) {
  const built = await build({
    entryPoints: [join(here, "src", entry)],
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "eof",
    loader: { ".css": "text" },
    logLevel: "warning",
    ...options,
  });
  return built.outputFiles[0].contents;
}

const hashOf = (code) => createHash("sha256").update(code).digest("hex").slice(0, 16);

async function put(path, content) {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
}

const widget = await bundle("widget.ts");
const view = await bundle("view/index.ts");
const lab = await bundle("lab/entry.ts", { format: "iife" });

await rm(extension, { recursive: true, force: true });
const entry = `static/remoteEntry.${hashOf(lab)}.js`;
await put(join(extension, entry), lab);
await put(join(extension, `static/view.${hashOf(view)}.js`), view);
const about = { name: "jupyter-agentwatch", version, jupyterlab: { _build: { load: entry, extension: "./extension" } } };
await put(join(extension, "package.json"), `${JSON.stringify(about, null, 2)}\n`);
await put(join(room, "notebook", "static", "widget.js"), widget);
await put(join(room, "notebook", "static", "bundle.txt"), `${hashOf(view)}\n`);

const sizes = { widget, view, lab };
for (const [name, code] of Object.entries(sizes)) {
  console.log(`${name}: ${code.length} bytes, ${gzipSync(code).length} gzipped`);
}
