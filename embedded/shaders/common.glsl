#version 330 core
// Shared by every program: one person's pose, the lights, noise, and the way to the screen.
// Lengths are decimetres, colours linear light.

const int MAX_KNOTS = 19;

layout(std140) uniform Scene {
    mat4 view_projection;
    mat4 shadow_matrix;      // world to shadow map [0,1]^3
    vec4 camera;             // xyz: position
    vec4 pivot_angle;        // xyz: where the neck turns, w: angle in radians
    vec4 axis;               // xyz: the turn's axis
    vec4 key_dir;            // towards the light
    vec4 key_color;          // times intensity
    vec4 sky_color;
    vec4 ground_color;
    vec4 rim_dir;
    vec4 rim_color;
    vec4 misc;               // x: exposure, y: random seed in [0,1), z: unused, w: unused
};

vec3 turn(vec3 v, float share) {  // Rodrigues
    float angle = pivot_angle.w * share, c = cos(angle), s = sin(angle);
    return v * c + cross(axis.xyz, v) * s + axis.xyz * dot(axis.xyz, v) * (1.0 - c);
}
vec3 pose(vec3 p, float share) { return pivot_angle.xyz + turn(p - pivot_angle.xyz, share); }

float hash(vec3 p) {
    p = fract(p * vec3(0.1031, 0.1030, 0.0973));
    p += dot(p, p.yxz + 33.33);
    return fract((p.x + p.y) * p.z);
}
float noise(vec3 p) {
    vec3 i = floor(p), f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(mix(hash(i), hash(i + vec3(1, 0, 0)), f.x), mix(hash(i + vec3(0, 1, 0)), hash(i + vec3(1, 1, 0)), f.x), f.y),
               mix(mix(hash(i + vec3(0, 0, 1)), hash(i + vec3(1, 0, 1)), f.x), mix(hash(i + vec3(0, 1, 1)), hash(i + vec3(1, 1, 1)), f.x), f.y), f.z);
}
float fbm(vec3 p) { return 0.55 * noise(p) + 0.3 * noise(p * 2.03 + 7.1) + 0.15 * noise(p * 4.1 + 3.7); }

// Tone curve of Narkowicz 2015 ("ACES filmic tone mapping curve"), then sRGB.
vec3 to_screen(vec3 light) {
    vec3 x = light * misc.x * 0.82;
    x = clamp((x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14), 0.0, 1.0);
    return mix(12.92 * x, 1.055 * pow(x, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, x));
}

vec3 ambient(vec3 n) { return mix(ground_color.rgb, sky_color.rgb, 0.5 + 0.5 * n.y); }
