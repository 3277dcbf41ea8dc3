// Cryptography that shares no code with what is tested: one JSON request a line in, one JSON answer a line out.
// Ends when its standard input ends.
import { createHash, createHmac, createPublicKey, generateKeyPairSync, randomUUID, verify } from "node:crypto";
import { createInterface } from "node:readline";
import { sign } from "@octokit/webhooks-methods";

const bytes = (text) => Buffer.from(text, "base64");

const operations = {
  // GitHub's signature of a delivery, by GitHub's own library.
  "sign-github": async ({ secret, data }) => ({ signature: await sign(secret, bytes(data).toString("utf8")), id: randomUUID() }),
  "hmac-sha256": ({ secret, data }) => ({ signature: createHmac("sha256", secret).update(bytes(data)).digest("hex"), id: randomUUID() }),
  "hmac-sha1": ({ secret, data }) => ({ signature: createHmac("sha1", secret).update(bytes(data)).digest("hex"), id: randomUUID() }),
  "sha256-base64url": ({ data }) => ({ digest: createHash("sha256").update(bytes(data)).digest("base64url") }),
  "verify-rs256": ({ key, data, signature }) => ({
    valid: verify("RSA-SHA256", bytes(data), createPublicKey(key), Buffer.from(signature, "base64url")),
  }),
  // PKCS #1, as GitHub hands it out.
  "key-pair": () => {
    const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    return {
      private: privateKey.export({ type: "pkcs1", format: "pem" }),
      private_pkcs8: privateKey.export({ type: "pkcs8", format: "pem" }),
      public: publicKey.export({ type: "spki", format: "pem" }),
    };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { operation, ...input } = JSON.parse(line);
    answer = await operations[operation](input);
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
