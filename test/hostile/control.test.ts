/** `introducer ctl`: what a client of the same user, or something that is no introducer, must not stop. On the wire. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { program } from "../introducer/introducer-fixture.ts";
import { Control } from "../../native/terminal/introducer-control.ts";
import type { Operated } from "../../native/terminal/introducer-commands.ts";
import { startIntroducer } from "../driven-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { LineSocket, Member, until } from "./wire.ts";

setDefaultTimeout(testMs);
const place = mkdtempSync(join(tmpdir(), "control-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

async function ctl(path: string, ...line: string[]) {
  const child = Bun.spawn([process.execPath, program, "ctl", "--control", path, ...line], {
    ...{ stdout: "pipe", stderr: "pipe" },
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

test("those who never read the answer are sent away, and others have their place", async () => {
  const path = join(place, "own.sock");
  await using house = startIntroducer();
  const { introducer } = house;
  using _ = await Member.join(house.port, { name: "eve" });
  const [row] = await introducer.listed();
  // More than the kernel keeps for who does not read.
  const crowd = Array.from({ length: 4_000 }, () => row!);
  const operated: Operated = {
    stats: introducer.stats,
    names: () => introducer.names(),
    listed: async () => crowd,
    others: async () => undefined,
    tell: async () => false,
    broadcast: async () => 0,
    broadcastElsewhere: async () => undefined,
    setLimits() {},
    drain: async () => {},
  };
  const control = new Control(operated, () => {});
  control.listen(path, false, () => {});
  const said = (line: string) => `${JSON.stringify({ line, width: null, colors: false, json: true })}\n`;
  // Nothing of theirs is read: nobody listens for it.
  const silent = Array.from({ length: 8 }, () =>
    net
      .connect(path)
      .on("error", () => {})
      .pause(),
  );
  for (const one of silent) one.write(said("list"));
  const served = async () => {
    using one = new LineSocket(net.connect(path));
    one.raw(said("stats"));
    await one.lines.over();
    return one.lines.all.some(({ code }) => code === 0);
  };
  await until("all eight places are taken", async () => !(await served()));
  await until("they are free again", served);
  control.stop();
  for (const one of silent) one.destroy();
});

test("what answers and is no introducer is told of, whatever it says", async () => {
  for (const answer of [
    "HTTP/1.1 400 Bad Request\r\n\r\n",
    "null\n",
    "7\n",
    '{"code":"x"}\n',
    "[]\n",
    '{"result":7}\n',
  ]) {
    const path = join(place, `${randomBytes(4).toString("hex")}.sock`);
    const server = net.createServer((socket) => void socket.on("error", () => {}).end(answer));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const { code, err } = await ctl(path, "list");
    expect([code, err, answer]).toEqual([
      1,
      expect.stringMatching(/^error: what listens at .* is no introducer\n$/),
      answer,
    ]);
    server.close();
  }
});
