/** A socket of UDP: what it takes, what it says of what did not arrive, and how much it takes in one turn. */
import { readFileSync } from "node:fs";
import { expect, setDefaultTimeout, test } from "bun:test";
import { maxDatagramBytes, type UdpHandler, UdpSocket } from "../../native/host/udp.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { freeUdpPort } from "../udp-fixture.ts";

setDefaultTimeout(testMs);

interface Heard {
  datagrams: Buffer[];
  failures: string[];
  flooded: number;
}

function hearing(): { heard: Heard; handler: UdpHandler } {
  const heard: Heard = { datagrams: [], failures: [], flooded: 0 };
  const handler: UdpHandler = {
    datagram: (bytes) => void heard.datagrams.push(bytes),
    failed: (code) => void heard.failures.push(code),
    flooded: () => void heard.flooded++,
    drained: () => {},
  };
  return { heard, handler };
}

for (const address of ["127.0.0.1", "::1"])
  test(`datagrams are whole, the longest and the empty one, too: ${address}`, async () => {
    await using _ = noSocketLeft();
    const { heard, handler } = hearing();
    using bound = UdpSocket.bind(address, 0, handler);
    using connected = UdpSocket.connect(address, bound.port, hearing().handler);
    for (const length of [maxDatagramBytes, 0, 1]) {
      expect(connected.send(Buffer.alloc(length, 7))).toBe("sent");
      await until(`${length} bytes are there`, () => heard.datagrams.length > 0);
      expect(heard.datagrams.shift()).toEqual(Buffer.alloc(length, 7));
    }
    expect(connected.send(Buffer.alloc(70_000))).toBe("EMSGSIZE");
  });

test("a port that is closed is told, each time, and the socket goes on", async () => {
  await using _ = noSocketLeft();
  const port = freeUdpPort();
  const { heard, handler } = hearing();
  using connected = UdpSocket.connect("127.0.0.1", port, handler);
  for (let count = 1; count <= 3; count++) {
    expect(connected.send(Buffer.from("in vain"))).toBe("sent");
    await until("it is told", () => heard.failures.length >= count);
  }
  expect(new Set(heard.failures)).toEqual(new Set(["ECONNREFUSED"]));
  const { heard: there, handler: listener } = hearing();
  using _bound = UdpSocket.bind("127.0.0.1", port, listener);
  connected.send(Buffer.from("not in vain"));
  await until("it arrives", () => there.datagrams.length === 1);
});

test("what can't be had is said by its name, and leaves nothing open", async () => {
  await using _ = noSocketLeft();
  using taken = UdpSocket.bind("127.0.0.1", 0, hearing().handler);
  const problem = (make: () => UdpSocket) => {
    try {
      make().close();
      return undefined;
    } catch (error) {
      return (error as NodeJS.ErrnoException).code;
    }
  };
  expect(problem(() => UdpSocket.bind("127.0.0.1", taken.port, hearing().handler))).toBe("EADDRINUSE");
  expect(problem(() => UdpSocket.bind("192.0.2.1", 0, hearing().handler))).toBe("EADDRNOTAVAIL");
  expect(problem(() => UdpSocket.connect("255.255.255.255", 9, hearing().handler))).toBe("EACCES");
  taken.close();
  taken.close(); // twice is once
  expect(taken.send(Buffer.from("x"), 9, "127.0.0.1")).not.toBe("sent");
});

linuxTest("a flood is taken in turns, and what is too much is said", async () => {
  const { heard, handler } = hearing();
  using bound = UdpSocket.bind("127.0.0.1", 0, handler);
  using connected = UdpSocket.connect("127.0.0.1", bound.port, hearing().handler);
  const flood = 4_000;
  for (let count = 0; count < flood; count++) connected.send(Buffer.alloc(1));
  await until(
    "it is over",
    () =>
      heard.datagrams.length > 0 &&
      connected.send(Buffer.from("last")) === "sent" &&
      `${heard.datagrams.at(-1)}` === "last",
  );
  // Less is kept where the kernel keeps less for a reader.
  const kept = Number(readFileSync("/proc/sys/net/core/rmem_max", "utf8"));
  if (kept >= 1024 * 1024) expect(heard.flooded).toBeGreaterThan(0);
  expect(heard.datagrams.length).toBeLessThan(flood);
});
