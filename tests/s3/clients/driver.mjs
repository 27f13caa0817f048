// What driver.py is, for clients in JavaScript: a JSON object a line in, one out.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const LOST = /PreconditionFailed|ConditionalRequestConflict|412/;

// Whether a conditional write was made; errors that are no answer to its condition go on.
export async function won(write) {
  try {
    await write();
    return true;
  } catch (error) {
    if (LOST.test(`${error.name} ${error.code} ${error.message}`)) return false;
    throw error;
  }
}

// The version of a package; its folder is beside this file.
export function installed(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

async function answer(driver, { call, ...args }) {
  if (call === "methods") return { ok: Object.keys(driver) };
  if (call === "race") {
    return { ok: await Promise.all(args.each.map((each) => answer(driver, { ...each, call: args.method }))) };
  }
  if (!driver[call]) return { impossible: `no ${call}` };
  try {
    return { ok: (await driver[call](args)) ?? null };
  } catch (error) {
    console.error(error);
    return { error: `${error.name} ${error.code ?? ""}: ${error.message}` };
  }
}

export async function serve(driver) {
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(driver, JSON.parse(line))) + "\n");
  }
  process.exit(0);
}
