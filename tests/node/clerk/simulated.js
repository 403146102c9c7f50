// Starts `lab simulate` for a test file, and ends it with it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

/** @returns {Promise<{ url: string, secretKey: string, stop: () => Promise<void> }>} */
export async function simulate(...options) {
  const binary = process.env.LAB_BIN;
  if (!binary) throw new Error("LAB_BIN does not name the lab binary");
  // It ends when its input does, so that it never outlives this process, however that ends.
  const child = spawn(binary, ["simulate", "--with-stdin", ...options], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(child, "exit");
  const lines = createInterface({ input: child.stdout });
  const early = ended.then(([code]) => Promise.reject(new Error(`simulate ended with ${code}`)));
  early.catch(() => {});
  const [line] = await Promise.race([once(lines, "line"), early]);
  const { url, secret_key: secretKey } = JSON.parse(line);
  const stop = async () => {
    child.stdin.end();
    await ended;
  };
  return { url, secretKey, stop };
}
