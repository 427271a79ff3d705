/** The participant's command line. */
import { expect, test } from "bun:test";
import { readHostPort } from "../../native/terminal/participant-arguments.ts";
import { defaultPort } from "../../protocol.ts";
import { outcome, program, startIntroducer } from "../driven-fixture.ts";

test.each([
  ["example.com", "example.com", defaultPort],
  ["example.com:8000", "example.com", 8000],
  ["192.0.2.1", "192.0.2.1", defaultPort],
  ["192.0.2.1:65535", "192.0.2.1", 65535],
  ["2001:DB8::1", "2001:db8::1", defaultPort],
  ["[2001:db8::1]", "2001:db8::1", defaultPort],
  ["[2001:db8::1]:1", "2001:db8::1", 1],
  ["::1", "::1", defaultPort],
])("%s is an introducer", (text, host, port) => {
  expect(readHostPort(text)).toEqual({ host, port });
});

test.each(["", " ", "a:0", "a:65536", "a:", ":7000", "a b", "a:x", "[::1", "1:2:3:4:5:6:7:8:9", "http://a"])(
  "%o is no introducer",
  (text) => {
    expect(() => readHostPort(text)).toThrow("is no introducer: give HOST");
  },
);

test("--help prints the usage on stdout", async () => {
  const { code, stdout, stderr } = await outcome(["--help"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("Usage: bun run participant [HOST[:PORT]]");
  expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
});

test.each([
  ["an unknown option", ["--nonsense"], "--nonsense"],
  ["a name of two words", ["h", "--name", "two words"], "--name must be one word"],
  ["a number as a name", ["h", "--name", "12"], "--name must not be a number"],
  ["two introducers", ["one", "two"], "one introducer at a time, not one two"],
  ["a bad port", ["host:99999"], "port 1 to 65535"],
  ["no introducer and no terminal", [], "Give HOST[:PORT], or set INTRODUCER"],
])("wrong usage: %s", async (_, args, message) => {
  const { code, stdout, stderr } = await outcome(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).toContain("--help");
});

test("an introducer that can't be reached, from INTRODUCER, is one clear error", async () => {
  const { port, ...gone } = startIntroducer();
  await gone[Symbol.asyncDispose]();
  const { code, stdout, stderr } = await outcome(["--json"], { INTRODUCER: `127.0.0.1:${port}` });
  expect(code).toBe(1);
  expect(stderr).toBe(
    `error: cannot reach the introducer at 127.0.0.1:${port}: connection refused. Is it running ` +
      `(\`bun run introducer ${port}\`) and is that its address?\n`,
  );
  expect(JSON.parse(stdout)).toMatchObject({ event: "error" });
});

test("a file in place of the identity is a clear error", async () => {
  const { code, stderr } = await outcome(["127.0.0.1:1"], { XDG_STATE_HOME: program });
  expect(code).toBe(1);
  expect(stderr).toStartWith("error: ");
  expect(stderr).not.toContain("    at ");
});

test("a home that can't be written to is a warning", async () => {
  await using house = startIntroducer();
  const { code, stderr } = await outcome([`127.0.0.1:${house.port}`], { XDG_STATE_HOME: "/sys" });
  expect(code).toBe(0);
  expect(stderr).toStartWith("warning: cannot make /sys/tcp-hole-punching/identity.pem (E");
});
