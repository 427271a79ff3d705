import { expect, setDefaultTimeout, test } from "bun:test";
import { parseTable, takenPorts } from "../../native/host/taken-ports.ts";
import { until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { client, readAll, target } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const heads =
  "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const row = (port: string, inode: number, address = "0100007F") =>
  `   0: ${address}:${port} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 ${inode} 1 0000000014e1de90 100 0 0 10 0\n`;

test("the ports of sockets that a program has, of both families", () => {
  expect(parseTable(heads + row("1F90", 123) + row("FFFF", 7) + row("0016", 0))).toEqual([8080, 65535]);
  expect(parseTable(heads + row("1F90", 123, "0".repeat(32)))).toEqual([8080]);
  expect(parseTable("")).toEqual([]);
});

linuxTest(
  "a port that is listened at, one that is connected from, and one that is only closing",
  async () => {
    const ports = await (async () => {
      await using one = await target((socket) => void socket.resume().on("end", () => socket.end()));
      const socket = client(one.port);
      await new Promise((resolve) => socket.on("connect", resolve));
      const { localPort } = socket;
      expect([one.port, localPort].map((port) => takenPorts().has(port!))).toEqual([true, true]);
      const over = readAll(socket);
      socket.end();
      await over;
      return [one.port, localPort];
    })();
    await until("nobody has them", () => !ports.some((port) => takenPorts().has(port!)));
  },
);
