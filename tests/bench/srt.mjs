// Keeps one sandbox-runtime session open; for each line of input runs it as a command and says how long it took.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [, , module, config] = process.argv;
const { SandboxManager } = await import(pathToFileURL(module).href);
await SandboxManager.initialize(JSON.parse(config));
for await (const command of createInterface({ input: process.stdin })) {
  const begun = process.hrtime.bigint();
  const wrapped = await SandboxManager.wrapWithSandbox(command);
  const child = spawn(wrapped, { shell: true, stdio: 'ignore' });
  const code = await new Promise((resolve) => child.on('close', resolve));
  const ms = Number(process.hrtime.bigint() - begun) / 1e6;
  SandboxManager.cleanupAfterCommand();
  process.stdout.write(`${JSON.stringify({ code, ms })}\n`);
}
await SandboxManager.reset();
process.exit(0);
