// Writes the npm packages: `node npm/pack.js FOLDER [PLATFORM=PROGRAM]...`, such as `linux-x64=target/release/clerk-sync`.
//
// The wrapper always, and one package for each platform that has a program. Everything in their package.json that is not fixed here
// comes from Cargo.toml. The same programs give the same tarballs, byte for byte.
"use strict";
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const PLATFORMS = {
  "linux-x64": { os: ["linux"], cpu: ["x64"], libc: ["glibc"] },
  "linux-arm64": { os: ["linux"], cpu: ["arm64"], libc: ["glibc"] },
  "darwin-x64": { os: ["darwin"], cpu: ["x64"] },
  "darwin-arm64": { os: ["darwin"], cpu: ["arm64"] },
};
const root = path.dirname(__dirname);

/** What `[package]` of Cargo.toml says. */
function manifest(name) {
  const value = new RegExp(`^${name} = "(.*)"$`, "m").exec(fs.readFileSync(path.join(root, "Cargo.toml"), "utf8"));
  if (!value) throw new Error(`Cargo.toml has no ${name}`);
  return value[1];
}

const common = {
  version: manifest("version"),
  license: manifest("license"),
  // npm publishes with provenance only from the repository that is named here; a release names its own.
  ...(process.env.GITHUB_REPOSITORY && {
    repository: { type: "git", url: `git+https://github.com/${process.env.GITHUB_REPOSITORY}.git` },
  }),
  publishConfig: { access: "public" },
};

/** Packs a folder made of these files: `{ name: [source, mode] }`. */
function pack(destination, description, files) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "clerk-sync-npm-"));
  try {
    fs.writeFileSync(path.join(folder, "package.json"), `${JSON.stringify({ ...description, ...common }, null, 2)}\n`);
    for (const [name, [source, mode]] of Object.entries({ ...files, LICENSE: [path.join(root, "LICENSE"), 0o644] })) {
      fs.copyFileSync(source, path.join(folder, name));
      fs.chmodSync(path.join(folder, name), mode);
    }
    const arguments_ = ["pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", destination];
    process.stdout.write(execFileSync("npm", arguments_, { cwd: folder, encoding: "utf8" }));
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function main([folder, ...programs]) {
  if (!folder) throw new Error("usage: node npm/pack.js FOLDER [PLATFORM=PROGRAM]...");
  const destination = path.resolve(folder);
  fs.mkdirSync(destination, { recursive: true });
  for (const pair of programs) {
    const [platform, program] = pair.split(/=(.*)/s);
    if (!PLATFORMS[platform]) throw new Error(`${platform} is none of ${Object.keys(PLATFORMS).join(", ")}`);
    const description = {
      name: `@clerk-sync/${platform}`,
      description: `The program of the package clerk-sync for ${platform}`,
      ...PLATFORMS[platform],
      preferUnplugged: true,
    };
    pack(destination, description, { "clerk-sync": [program, 0o755] });
  }
  const description = {
    name: "clerk-sync",
    description: manifest("description"),
    bin: { "clerk-sync": "clerk-sync.js" },
    engines: { node: ">=20" },
    optionalDependencies: Object.fromEntries(Object.keys(PLATFORMS).map((name) => [`@clerk-sync/${name}`, common.version])),
  };
  const source = path.join(__dirname, "clerk-sync");
  pack(destination, description, {
    "clerk-sync.js": [path.join(source, "clerk-sync.js"), 0o755],
    "README.md": [path.join(source, "README.md"), 0o644],
  });
}

main(process.argv.slice(2));
