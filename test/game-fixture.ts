/** A small game of UDP, as games are: a server that sends its whole state at each tick, and players that send their moves. */
import { UdpSocket } from "../native/host/udp.ts";
import { until } from "./native-fixture.ts";

const tickMs = 20;

interface State {
  tick: number;
  /** Where each player stands. */
  players: Record<string, number>;
}

export class GameServer implements Disposable {
  readonly port: number;
  readonly #socket: UdpSocket;
  readonly #players = new Map<string, { at: number; to: [port: number, address: string] }>();
  readonly #ticking: NodeJS.Timeout;
  #tick = 0;

  constructor(address = "127.0.0.1") {
    this.#socket = UdpSocket.bind(address, 0, {
      datagram: (bytes, ...to) => {
        const [name = "", at] = `${bytes}`.split(" ");
        this.#players.set(name, { at: Number(at), to });
      },
      failed: () => {},
      drained: () => {},
      flooded: () => {},
    });
    this.port = this.#socket.port;
    this.#ticking = setInterval(() => this.#send(), tickMs);
  }

  #send(): void {
    this.#tick++;
    const players = Object.fromEntries([...this.#players].map(([name, { at }]) => [name, at]));
    const state = Buffer.from(JSON.stringify({ tick: this.#tick, players } satisfies State));
    for (const { to } of this.#players.values()) this.#socket.send(state, ...to);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#ticking);
    this.#socket.close();
  }
}

export class Player implements Disposable {
  readonly #socket: UdpSocket;
  readonly #moving: NodeJS.Timeout;
  #at = 0;
  #state: State = { tick: 0, players: {} };
  /** Ticks that came after a later one. */
  old = 0;

  constructor(name: string, port: number, address = "127.0.0.1") {
    this.#socket = UdpSocket.connect(address, port, {
      datagram: (bytes) => {
        const state = JSON.parse(`${bytes}`) as State;
        if (state.tick < this.#state.tick) this.old++;
        else this.#state = state;
      },
      failed: () => {},
      drained: () => {},
      flooded: () => {},
    });
    this.#moving = setInterval(() => this.#socket.send(Buffer.from(`${name} ${this.#at++}`)), tickMs);
  }

  /** Resolves once it has seen each of them come so far. */
  async sees(names: readonly string[], at: number): Promise<void> {
    await until(`${names.join(", ")} at ${at}`, () =>
      names.every((name) => (this.#state.players[name] ?? 0) >= at),
    );
  }

  [Symbol.dispose](): void {
    clearInterval(this.#moving);
    this.#socket.close();
  }
}

/** `serve` prints its port; `play PORT NAME OTHER FAR` ends once NAME has seen itself and OTHER come so far. */
if (import.meta.main) {
  const [what = "", port = "", name = "", other = "", far = ""] = process.argv.slice(2);
  if (what === "serve") console.log(new GameServer().port);
  else {
    const player = new Player(name, Number(port));
    await player.sees([name, other], Number(far));
    console.log(`old: ${player.old}`);
    process.exit();
  }
}
