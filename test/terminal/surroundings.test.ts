/** Odd surroundings in which a program may be started: no home, no account, an input that is none. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import { missing, testNeeding } from "../needing-fixture.ts";
import { root } from "../pty-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const notRoot = process.getuid?.() === 0 ? undefined : "only root can be another user";

async function outcome(command: string[], environment: Record<string, string>) {
  const child = Bun.spawn(command, { cwd: "/", env: environment, stdin: "ignore", stderr: "pipe" });
  return { stderr: await child.stderr.text(), code: await child.exited };
}

testNeeding(missing(["setpriv"], "util-linux"), notRoot)(
  "a user without home and account has an identity for now, and is told",
  async () => {
    await using house = Introducer.start({ host: "127.0.0.1", port: 0 });
    // Not from the checkout, which that user may not be able to read: one file of it, for all.
    const bundle = await Bun.build({ entrypoints: [join(root, "participant.ts")], target: "bun" });
    const program = `/tmp/participant-of-nobody-${process.pid}.js`;
    await Bun.write(program, bundle.outputs[0]!);
    const other = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "env", "-i"];
    const { stderr, code } = await outcome(
      [...other, process.execPath, program, `127.0.0.1:${house.port}`, "--room", "four words for this test"],
      {},
    );
    await Bun.file(program).delete();
    expect(stderr).toStartWith(
      "warning: this user has no home folder; set XDG_STATE_HOME to a folder that is yours",
    );
    expect(stderr).toContain("registered as ");
    expect(code).toBe(0);
  },
);

test.each(["participant", "introducer"])("the %s says that a folder is no input", async (program) => {
  await using house = Introducer.start({ host: "127.0.0.1", port: 0 });
  const args =
    program === "participant"
      ? `127.0.0.1:${house.port} --name al`
      : `${freePort()} --host 127.0.0.1 --probe-ports none`;
  const command = `exec '${process.execPath}' '${join(root, program)}.ts' ${args} < /tmp`;
  const child = Bun.spawn(["sh", "-c", command], { stdout: "ignore", stderr: "pipe" });
  let told = "";
  for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
    told += text;
    if (told.includes("folder")) child.kill("SIGTERM"); // the introducer is a service, and goes on without it
  }
  expect(told).toContain("error: cannot read standard input: it is a folder\n");
  expect(told).not.toContain("    at ");
  await child.exited;
});
