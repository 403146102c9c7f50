#!/usr/bin/env node
// Starts the program of this platform's package. Arguments, input, output, signals and the exit code pass through.
"use strict";
const { spawn } = require("node:child_process");

const platform = `${process.platform}-${process.arch}`;
const image = "use the container image instead, or build from source with cargo";

function missing() {
  if (process.platform === "win32") return "there is no build for Windows: run it in WSL";
  if (!/^(linux|darwin)-(x64|arm64)$/.test(platform)) return `there is no build for ${platform}: ${image}`;
  return `the package @clerk-sync/${platform} is not installed: install clerk-sync again without --omit=optional (on Alpine Linux, ${image})`;
}

function fail(sentence) {
  console.error(`clerk-sync: ${sentence}`);
  process.exit(1);
}

let program;
try {
  program = require.resolve(`@clerk-sync/${platform}/clerk-sync`);
} catch {
  fail(missing());
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
const signals = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"];
for (const signal of signals) process.on(signal, () => child.kill(signal));
child.on("error", (error) => fail(`${program} cannot be started: ${error.message}`));
child.on("exit", (code, signal) => {
  if (signal === null) process.exit(code);
  for (const handled of signals) process.removeAllListeners(handled);
  process.kill(process.pid, signal); // ends as the program did
});
