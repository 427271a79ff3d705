/** What is told, and where, and what a run ends with: as scripts, cron and service managers start programs. */
import { expect } from "bun:test";
import { existsSync, mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Driven, homeOf, program, spawn, startIntroducer } from "../../driven-fixture.ts";
import { newRoomWords } from "../../../native/secure/words.ts";
import { until } from "../../native-fixture.ts";
import { target } from "../../sockets-fixture.ts";
import { scenario } from "./field-fixture.ts";

const words = newRoomWords();
const environment = (name: string, port: number) => ({
  XDG_STATE_HOME: homeOf(name),
  INTRODUCER: `127.0.0.1:${port}`,
  ROOM: words,
});

/** The participant, in a shell: what stands behind it may close or limit something. */
function inShell(name: string, port: number, command: string) {
  const env = { ...process.env, ...environment(name, port), P: `${process.execPath} ${program}` };
  return Bun.spawn(["sh", "-c", command], {
    ...{ env, cwd: homeOf(name), stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  });
}

scenario(
  "five at once with one name and -q, as by ssh: nothing is told, and each has what it asked for",
  async () => {
    await using house = startIntroducer();
    await using greeter = await target((socket) => void socket.end("hello"));
    const targeted = `127.0.0.1:${greeter.port}`;
    await using bob = new Driven(house.port, "bob", "--room", words, "--allow", targeted);
    await bob.registered;
    const args = ["--name", "alice", "-q", "--pipe", `bob:${targeted}`];
    const all = Array.from({ length: 5 }, async () => {
      const one = spawn(args, environment("alice", house.port), homeOf("alice"));
      const [out, told] = await Promise.all([one.stdout.text(), one.stderr.text()]);
      return [await one.exited, out, told];
    });
    expect(await Promise.all(all)).toEqual(Array(5).fill([0, "hello", ""]));
  },
);

scenario(
  "standard input, output and error all closed: a file is sent and received all the same",
  async () => {
    await using house = startIntroducer();
    const content = Buffer.alloc(300_000, "content");
    writeFileSync(join(homeOf("giver"), "file"), content);
    const closed = "<&- >&- 2>&-";
    const taking = inShell("taker", house.port, `exec $P --name taker --accept in ${closed}`);
    const giving = inShell(
      "giver",
      house.port,
      `$P --name giver --connect taker --send file --wait 30 ${closed}`,
    );
    expect(await giving.exited).toBe(0);
    expect(readFileSync(join(homeOf("taker"), "in/file")).equals(content)).toBe(true);
    taking.kill();
    await taking.exited;
  },
);

scenario(
  "a limit of 24 descriptors and one of 1 MB for files: what fails says why, and ends with 1",
  async () => {
    await using house = startIntroducer();
    const from = join(homeOf("large"), "file");
    writeFileSync(from, "");
    truncateSync(from, 20_000_000);
    const limits = "ulimit -n 24; ulimit -f 2000";
    const taking = inShell("small", house.port, `${limits}; exec $P --name small --accept in`);
    const giving = inShell("large", house.port, `$P --name large --connect small --send ${from} --wait 30`);
    const told = await giving.stderr.text();
    expect(await giving.exited).toBe(1);
    expect(told).toContain("too large for the file system");
    taking.kill();
    await taking.exited;
  },
);

scenario(
  "names that shells trip over arrive as they are; what can't be sent is told by its name",
  async () => {
    await using house = startIntroducer();
    const folder = join(homeOf("names"), "odd");
    mkdirSync(folder);
    const names = ["-rf", ".hidden", "sp ace", "a:b", 'q"uote', "$(id)", "ünïcode", "x".repeat(250)];
    for (const name of names) writeFileSync(join(folder, name), name);
    symlinkSync("/etc/passwd", join(folder, "out"));
    symlinkSync("self", join(folder, "self"));
    const taking = inShell("other", house.port, "exec $P --name other --accept in");
    const giving = inShell("names", house.port, "$P --name names --connect other --send odd --wait 30");
    const told = await giving.stderr.text();
    expect(await giving.exited).toBe(0);
    for (const line of ["odd/out: it is a link that leads out", "odd/self: its links lead in a circle"])
      expect(told).toContain(line);
    for (const name of names) expect(readFileSync(join(homeOf("other"), "in/odd", name), "utf8")).toBe(name);
    taking.kill();
    await taking.exited;
  },
);

scenario("whoever read the story is gone: a service goes on", async () => {
  await using house = startIntroducer();
  await using greeter = await target((socket) => void socket.end("hello"));
  const serve = `$P --name served --allow 127.0.0.1:${greeter.port} -v`;
  const serving = inShell("served", house.port, `(${serve} 2>&1 & echo $! >pid; wait) | head -1 >first`);
  const pathOf = (name: string) => join(homeOf("served"), name);
  const hasFirst = () => existsSync(pathOf("first")) && readFileSync(pathOf("first"), "utf8") !== "";
  await until("its first line is read", hasFirst, 20_000);
  const pid = Number(readFileSync(pathOf("pid"), "utf8"));
  try {
    await until("it is there", () => house.introducer.participants.length === 1, 20_000);
    const args = ["--name", "visitor", "-q", "--pipe", `served:127.0.0.1:${greeter.port}`];
    const visitor = spawn(args, environment("visitor", house.port), homeOf("visitor"));
    expect([await visitor.stdout.text(), await visitor.exited]).toEqual(["hello", 0]);
  } finally {
    process.kill(pid);
    await serving.exited;
  }
});
