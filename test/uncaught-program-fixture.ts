/** Loaded before each program that a test starts: what it does not catch ends it, and is told to uncaught-fixture.ts. */
import { appendFileSync } from "node:fs";

/** EX_SOFTWARE of sysexits.h: no code of ours. */
const internalError = 70;

for (const kind of ["uncaughtException", "unhandledRejection"] as const) {
  process.on(kind, (error: unknown) => {
    const text = `${process.argv.slice(1).join(" ")}: ${kind}: ${Bun.inspect(error)}\n`;
    console.error(text);
    if (process.env.UNCAUGHT_FILE !== undefined) appendFileSync(process.env.UNCAUGHT_FILE, text);
    process.exit(internalError);
  });
}
