/** Why a participant can't do what it is asked for, where several places say so. Pure. For native/participant/. */
import { printable, UserError } from "../../protocol.ts";

export const hasQuit = () => new UserError("this participant has quit", { code: "has-quit" });

export const notRegistered = () =>
  new UserError("not registered with the introducer; `join` first", { code: "not-registered" });

export const notLinked = (name: string) =>
  new UserError(`not linked with ${printable(name)}; \`connect ${printable(name)}\` first`, {
    code: "not-linked",
  });

export const nobody = (message: string) => new UserError(message, { code: "no-such-peer" });
