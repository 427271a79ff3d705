/**
 * The relay beside the rounds of one introduction: taken at most once, when the introducer offers it. Owns the try of it,
 * and a connection that is made for it beforehand. What becomes of the introduction is not its business. For
 * native/punch/encounter.ts.
 */
import type { FailureReason, Role } from "../../protocol.ts";
import type { Channel } from "../secure/channel.ts";
import type { Bond } from "../secure/room.ts";
import type { PunchContext } from "./context.ts";
import { alpnOf } from "./punch.ts";
import { RelayAttempt, reserve, type Reservation } from "./relayed.ts";

export class RelayWay {
  readonly #context: PunchContext;
  #attempt: RelayAttempt | undefined;
  #token: string | undefined;
  /** A connection to the relay, made before a birthday: after it our NAT may have no more sessions for us. */
  #reserved: Reservation | undefined;

  constructor(context: PunchContext) {
    this.#context = context;
  }

  /** Of the one that was offered. */
  get token(): string | undefined {
    return this.#token;
  }

  get isTried(): boolean {
    return this.#attempt !== undefined;
  }

  reserve(): void {
    const { takes, introducer } = this.#context;
    if (takes !== "direct" && this.#token === undefined) this.#reserved ??= reserve(introducer);
  }

  take(
    { role, token }: { role: Role; token: string },
    bond: Bond,
    onChannel: (channel: Channel) => void,
    onFailed: (detail: string, reason: FailureReason) => void,
  ): void {
    const { introducer, credentials } = this.#context;
    this.#token = token;
    this.#attempt = new RelayAttempt({
      ...{ introducer, reserved: this.#takeReserved(), credentials },
      ...{ bond, role, token, alpn: alpnOf(token) },
      onChannel: (channel) => {
        this.#attempt = undefined;
        onChannel(channel);
      },
      onFailed: (detail, reason) => {
        this.#attempt = undefined;
        onFailed(detail, reason);
      },
    });
  }

  close(): void {
    this.#attempt?.abort();
    void this.#takeReserved()?.then((socket) => socket?.close());
  }

  /** Hands the reserved connection to a new owner. */
  #takeReserved(): Reservation | undefined {
    const reserved = this.#reserved;
    this.#reserved = undefined;
    return reserved;
  }
}
