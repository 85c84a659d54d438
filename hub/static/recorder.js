// Passes the microphone's samples to the page, 4096 at a time.

class Recorder extends AudioWorkletProcessor {
  block = new Float32Array(4096);
  filled = 0;

  process([[channel]]) {
    if (!channel) return true;
    this.block.set(channel, this.filled); // blocks of 128 samples divide 4096
    this.filled += channel.length;
    if (this.filled === this.block.length) {
      this.port.postMessage(this.block);
      this.filled = 0;
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
